"""Reference images for tests/images_spec.lua: Pillow's pixels, with draws of an independent Philox.

usage: python tests/reference/images.py tests/fixtures/images.safetensors        (needs pillow, numpy, safetensors)
Every expected image is what Pillow computes. Which operation, where and how strong follows the published definitions
(arXiv:1909.13719 with the increasing set, 1708.04896, 1710.09412, 1905.04899, 2204.07118) and draws made here.
"""
import io
import json
import math
import sys

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from safetensors.numpy import save_file

tensors, cases, inputs = {}, [], {}
MASK = (1 << 64) - 1
MEAN, DEVIATION = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
FILL = tuple(round(255 * float(m)) for m in MEAN)


# ---- draws ------------------------------------------------------------------------------------------

def philox(seed, stream, counter):
    x = [counter & 0xFFFFFFFF, counter >> 32, stream & 0xFFFFFFFF, stream >> 32]
    k = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(p1 >> 32) ^ x[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ x[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return x


class Draw:
    """Numbers of one sample (or batch): uniform k of a stream, normal i of a stream."""

    def __init__(self, seed, epoch, sample):
        self.seed, self.epoch, self.sample = seed, epoch, sample

    def stream(self, name):
        h = 0xCBF29CE484222325
        for byte in name.encode():
            h = ((h ^ byte) * 0x100000001B3) & MASK
        return (h + self.epoch * 0x9E3779B97F4A7C15) & MASK

    def uniform(self, name, k):
        i = self.sample * 64 + k
        return philox(self.seed, self.stream(name), i // 4)[i % 4] / 2**32

    def below(self, name, k, n):
        return min(n - 1, int(self.uniform(name, k) * n))

    def normal_at(self, name, index):
        w = philox(self.seed, self.stream(name), index // 2)
        u = (((w[0] << 32 | w[1]) >> 12) + 0.5) * 2.0**-52
        angle = 2 * math.pi * (((w[2] << 32 | w[3]) >> 11) * 2.0**-53)
        return math.sqrt(-2 * math.log(u)) * (math.sin(angle) if index & 1 else math.cos(angle))

    def normal(self, name, k):
        return self.normal_at(name, self.sample * 64 + k)


# ---- operations -------------------------------------------------------------------------------------

def affine(image, matrix, resample):
    fill = FILL if image.mode == "RGB" else FILL[0]
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)


def solarize_add(image, value):
    return image.point([min(255, i + int(value)) if i < 128 else i for i in range(256)] * len(image.getbands()))


OPS = {
    "auto_contrast": lambda i, v, r: ImageOps.autocontrast(i),
    "equalize": lambda i, v, r: ImageOps.equalize(i),
    "invert": lambda i, v, r: ImageOps.invert(i),
    "rotate": lambda i, v, r: i.rotate(v, r, fillcolor=FILL if i.mode == "RGB" else FILL[0]),
    "posterize": lambda i, v, r: i if v >= 8 else i.point([j & ~(2 ** (8 - int(v)) - 1) & 255 for j in range(256)] * len(i.getbands())),
    "solarize": lambda i, v, r: ImageOps.solarize(i, int(v)),
    "solarize_add": lambda i, v, r: solarize_add(i, v),
    "color": lambda i, v, r: ImageEnhance.Color(i).enhance(v),
    "contrast": lambda i, v, r: ImageEnhance.Contrast(i).enhance(v),
    "brightness": lambda i, v, r: ImageEnhance.Brightness(i).enhance(v),
    "sharpness": lambda i, v, r: ImageEnhance.Sharpness(i).enhance(v),
    "shear_x": lambda i, v, r: affine(i, (1, v, 0, 0, 1, 0), r),
    "shear_y": lambda i, v, r: affine(i, (1, 0, 0, v, 1, 0), r),
    "translate_x": lambda i, v, r: affine(i, (1, 0, v * i.size[0], 0, 1, 0), r),
    "translate_y": lambda i, v, r: affine(i, (1, 0, 0, 0, 1, v * i.size[1]), r),
    "grey": lambda i, v, r: i.convert("L").convert(i.mode),
    "blur": lambda i, v, r: i.filter(ImageFilter.GaussianBlur(v)),
}
RAND = list(OPS)[:15]


def level_value(op, level, sign):
    share = level / 10
    return {"rotate": sign * share * 30, "posterize": 4 - int(share * 4), "solarize": 256 - min(256, int(share * 256)),
            "solarize_add": min(128, int(share * 110)), "shear_x": sign * share * 0.3, "shear_y": sign * share * 0.3,
            "translate_x": sign * share * 0.45, "translate_y": sign * share * 0.45}.get(op, max(0.1, 1 + sign * share * 0.9))


def rand_augment(image, d, magnitude, spread, layers, resample):
    for layer in range(layers):
        op = RAND[d.below("randaugment", 16 * layer, len(RAND))]
        if d.uniform("randaugment", 16 * layer + 1) >= 0.5:
            continue
        level = min(10, max(0, magnitude + spread * d.normal("magnitude", layer)))
        sign = -1 if d.uniform("randaugment", 16 * layer + 2) < 0.5 else 1
        image = OPS[op](image, level_value(op, level, sign), resample)
    return image


def jitter(image, d, amounts):
    names = ["brightness", "contrast", "color"]
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    for i in orders[d.below("jitter", 0, 6)]:
        low, high = max(0, 1 - amounts[i]), 1 + amounts[i]
        image = OPS[names[i]](image, low + (high - low) * d.uniform("jitter", 1 + i), None)
    return image


def three(image, d):
    which = d.below("three", 0, 3)
    if which == 0:
        return OPS["grey"](image, 0, None)
    return ImageOps.solarize(image, 128) if which == 1 else OPS["blur"](image, 0.1 + 1.9 * d.uniform("three", 1), None)


def erase(pixels, d, probability):
    size, channels = pixels.shape[0], pixels.shape[2]
    if d.uniform("erase", 0) >= probability:
        return pixels
    for i in range(10):
        target = size * size * (0.02 + (1 / 3 - 0.02) * d.uniform("erase", 4 * i + 1))
        shape = math.exp(math.log(0.3) + (math.log(1 / 0.3) - math.log(0.3)) * d.uniform("erase", 4 * i + 2))
        h, w = round(math.sqrt(target * shape)), round(math.sqrt(target / shape))
        if h >= size or w >= size:
            continue
        top, left = d.below("erase", 4 * i + 3, size - h + 1), d.below("erase", 4 * i + 4, size - w + 1)
        pixels = pixels.copy()
        for y in range(top, top + h):
            for x in range(left, left + w):
                for c in range(channels):
                    n = d.normal_at("noise", d.sample * pixels.size + (y * size + x) * channels + c)
                    v = round(255 * (float(MEAN[c]) + float(DEVIATION[c]) * n))
                    pixels[y, x, c] = min(255, max(0, v))
        return pixels
    return pixels


def resize(image, width, height, resample):
    """Rows first, then columns: Pillow itself chooses the order since version 13, which moves one value in 1000 by more than 1."""
    return image.resize((width, image.size[1]), resample).resize((width, height), resample)


def resized_crop(image, d, size, scale, ratio, resample):
    width, height = image.size
    for i in range(10):
        target = width * height * (scale[0] + (scale[1] - scale[0]) * d.uniform("augment", 4 * i))
        r = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * d.uniform("augment", 4 * i + 1))
        w, h = round(math.sqrt(target * r)), round(math.sqrt(target / r))
        if 0 < w <= width and 0 < h <= height:
            x, y = d.below("augment", 4 * i + 2, width - w + 1), d.below("augment", 4 * i + 3, height - h + 1)
            break
    else:
        w, h = width, height
        if width / height < ratio[0]:
            h = round(w / ratio[0])
        elif width / height > ratio[1]:
            w = round(h * ratio[1])
        x, y = (width - w) // 2, (height - h) // 2
    return resize(image.crop((x, y, x + w, y + h)), size, size, resample)


def pipeline(image, d, o):
    resample = Image.Resampling.BICUBIC
    image = resized_crop(image, d, o["size"], (0.08, 1), (3 / 4, 4 / 3), resample)
    if d.uniform("augment", 60) < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    a = o["augment"]
    image = rand_augment(image, d, a.get("magnitude", 0), a.get("spread", 0), a.get("layers", 0), resample)
    if a.get("three"):
        image = three(image, d)
    if a.get("jitter"):
        image = jitter(image, d, a["jitter"])
    return erase(np.asarray(image), d, a.get("erase", 0))


# ---- mixing -----------------------------------------------------------------------------------------

def gamma(d, which, shape):
    a = (shape + 1 if shape < 1 else shape) - 1 / 3
    c, v = 1 / math.sqrt(9 * a), 1
    for i in range(15):
        x = d.normal("mix.normal", 16 * which + i)
        v = (1 + c * x) ** 3
        if v > 0 and math.log(d.uniform("mix", 16 * which + i)) < x * x / 2 + a - a * v + a * math.log(v):
            break
        v = 1
    return a * v * (d.uniform("mix", 16 * which + 15) ** (1 / shape) if shape < 1 else 1)


def mix(images, d, mixup, cutmix):
    """images [b,C,S,S] u8 -> the same, mixed with the batch in reverse, and the share of each image's own label."""
    size, other = images.shape[-1], images[::-1]
    cut = cutmix > 0 and (mixup <= 0 or d.uniform("mix", 32) < 0.5)
    alpha = cutmix if cut else mixup
    x, y = gamma(d, 0, alpha), gamma(d, 1, alpha)
    share = x / (x + y)
    if not cut:
        return np.rint(images * share + other * (1 - share)).astype(np.uint8), share
    half = int(size * math.sqrt(1 - share)) // 2
    cy, cx = d.below("mix", 33, size), d.below("mix", 34, size)
    y0, y1, x0, x1 = np.clip([cy - half, cy + half, cx - half, cx + half], 0, size)
    out = images.copy()
    out[:, :, y0:y1, x0:x1] = other[:, :, y0:y1, x0:x1]
    return out, 1 - (y1 - y0) * (x1 - x0) / size**2


# ---- cases ------------------------------------------------------------------------------------------

def picture(width, height, channels, seed):
    """Waves, an edge and some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    planes = [120 + 90 * np.sin(x / (3 + c) + y / (5 + c)) + 40 * (x > y) + rng.normal(0, 9, (height, width)) for c in range(channels)]
    return Image.fromarray(np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8).squeeze())


def add(kind, image, out, **options):
    """Inputs that are the same are stored once."""
    key, given = f"{len(cases):03d}", np.ascontiguousarray(np.asarray(image))
    name = inputs.setdefault((given.shape, given.tobytes()), f"in{len(inputs):02d}")
    tensors[name], tensors[key] = given, np.ascontiguousarray(np.asarray(out))
    cases.append(dict(kind=kind, input=name, output=key, **options))


def main():
    FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    for channels in (3, 1):
        for width, height, size in ((61, 47, 24), (47, 61, 32), (20, 20, 50), (120, 90, 16), (33, 32, 32)):
            for name, resample in FILTERS.items():
                image = picture(width, height, channels, width)
                short, long = min(width, height), max(width, height)
                side = int(size * long / short)
                w, h = (size, side) if width <= height else (side, size)
                whole = resize(image, w, h, resample)
                left, top = round((w - size) / 2), round((h - size) / 2)
                add("resize", image, whole.crop((left, top, left + size, top + size)), size=size, interpolation=name)
        image = picture(40, 40, channels, 7)
        for op, values in (("auto_contrast", [0]), ("equalize", [0]), ("invert", [0]), ("rotate", [-27.3, 30, 0, 11.25]), ("posterize", [4, 1, 0, 8]),
                           ("solarize", [256, 26, 0]), ("solarize_add", [0, 99, 110]), ("color", [0.1, 1.9, 1]), ("contrast", [0.19, 1.81]),
                           ("brightness", [0.1, 1.9]), ("sharpness", [0.1, 1.9]), ("shear_x", [0.27, -0.3]), ("shear_y", [0.27, -0.3]),
                           ("translate_x", [0.4, -0.33, 0.2125]), ("translate_y", [0.4, -0.33]), ("grey", [0]), ("blur", [0.1, 0.7, 1.3, 2])):
            for value in values:
                for name, resample in FILTERS.items():
                    if name == "bicubic" or op in ("rotate", "shear_x", "translate_y"):
                        add("op", image, OPS[op](image, value, resample), op=op, value=value, interpolation=name)
    dark = Image.fromarray((np.asarray(picture(40, 40, 3, 3)) // 200).astype(np.uint8))
    flat = Image.new("RGB", (40, 40), (7, 100, 255))
    for image in (dark, flat):
        for op in ("auto_contrast", "equalize"):
            add("op", image, OPS[op](image, 0, None), op=op, value=0, interpolation="bicubic")

    image = picture(61, 47, 3, 5)
    DEIT = dict(layers=2, magnitude=9, spread=0.5, erase=0.25)
    for augment, samples in ((DEIT, range(24)), (dict(three=True, jitter=[0.3, 0.3, 0.3]), range(8)), (dict(jitter=[0.4, 0.2, 0.9], erase=1), range(4))):
        for sample in samples:
            o = dict(size=32, augment=augment)
            add("pipeline", image, pipeline(image, Draw(11, 3, sample), o), options=o, seed=11, epoch=3, sample=sample)

    def jpeg(name, image, **options):
        """The file's bytes, and the RGB or grey pixels that Pillow decodes from them, EXIF not heeded."""
        file = io.BytesIO()
        image.save(file, "png" if name == "png" else "jpeg", **options)
        out = Image.open(io.BytesIO(file.getvalue()))
        add("file", np.frombuffer(file.getvalue(), np.uint8), out if out.mode == "L" else out.convert("RGB"), name=name)


    photo = picture(109, 83, 3, 9)
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, image, options in (("444", photo, dict(subsampling=0)), ("422", photo, dict(subsampling=1)), ("420", photo, dict(subsampling=2)),
                                 ("progressive", photo, dict(progressive=True)), ("grey", photo.convert("L"), {}), ("cmyk", photo.convert("CMYK"), {}),
                                 ("exif", photo, dict(exif=turned)), ("png", photo, {})):
        jpeg(name, image, **options)

    stack = np.stack([np.asarray(picture(32, 32, 3, 20 + i)).transpose(2, 0, 1) for i in range(8)])
    for mixup, cutmix, seed in ((0.8, 1.0, 5), (0.8, 1.0, 6), (0.8, 0, 5), (0, 1.0, 5), (1.5, 0, 5)):
        parts = [mix(stack[i : i + 4], Draw(seed, 2, i // 4), mixup, cutmix) for i in (0, 4)]
        add("mix", stack, np.concatenate([p[0] for p in parts]), mixup=mixup, cutmix=cutmix, seed=seed, epoch=2, batch=4,
            shares=[p[1] for p in parts])

    save_file(tensors, sys.argv[1], metadata={"cases": json.dumps(cases)})
    print(len(cases), "cases,", sum(t.nbytes for t in tensors.values()), "bytes")


if __name__ == "__main__":
    main()
