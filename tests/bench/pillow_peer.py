"""Images a second of Pillow: decode (draft mode), RandomResizedCrop 224 bicubic, mirror; with "deit" also RandAugment and erasing.

usage: python tests/bench/pillow_peer.py FOLDER plain|deit PROCESSES        (needs pillow, numpy)
Each file once, after a pass that is not timed. Processes take turns of 24 files, as a data loader's workers do.
"""
import math
import multiprocessing
import os
import random
import sys
import time

import numpy as np
from PIL import Image

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "reference"))
from images import OPS, RAND, level_value

BICUBIC = Image.Resampling.BICUBIC


def window(width, height):
    for _ in range(10):
        target, ratio = width * height * random.uniform(0.08, 1), math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = random.randint(0, width - w), random.randint(0, height - h)
            return x, y, x + w, y + h
    return 0, 0, width, height


def erase(pixels):
    for _ in range(10):
        target, ratio = 224 * 224 * random.uniform(0.02, 1 / 3), math.exp(random.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if h < 224 and w < 224:
            y, x = random.randint(0, 224 - h), random.randint(0, 224 - w)
            pixels[y : y + h, x : x + w] = np.clip(np.random.normal(118, 58, (h, w, 3)), 0, 255)
            break


def load(path, deit):
    with Image.open(path) as image:
        image.draft("RGB", (224, 224))
        image = image.convert("RGB")
    image = image.crop(window(*image.size)).resize((224, 224), BICUBIC)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for _ in range(2 if deit else 0):
        op, level = random.choice(RAND), min(10, max(0, random.gauss(9, 0.5)))
        if random.random() < 0.5:
            image = OPS[op](image, level_value(op, level, random.choice((-1, 1))), BICUBIC)
    pixels = np.array(image)
    if deit and random.random() < 0.25:
        erase(pixels)
    return pixels.transpose(2, 0, 1)


def batch(job):
    """Seconds of processor time."""
    begun = time.process_time()
    np.ascontiguousarray(np.stack([load(path, job[1]) for path in job[0]]))
    return time.process_time() - begun


def main():
    folder, deit, processes = sys.argv[1], sys.argv[2] == "deit", int(sys.argv[3])
    files = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    jobs = [(files[i : i + 24], deit) for i in range(0, len(files), 24)]
    with multiprocessing.Pool(processes) as pool:
        pool.map(batch, jobs[: 2 * processes], 1)
        begun = time.perf_counter()
        busy = sum(pool.map(batch, jobs, 1))
        print(f"{len(files) / (time.perf_counter() - begun):.1f} images/s, {1000 * busy / len(files):.3f} ms")


if __name__ == "__main__":
    main()
