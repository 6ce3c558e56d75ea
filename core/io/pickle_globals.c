/* pickle_globals.c - the list. Whatever is missing here is refused by name. */
#include <string.h>

#include "pickle_globals.h"

#define STORAGE(name, stored) {"torch", name, ROLE_STORAGE, stored}
#define DTYPE(name, stored) {"torch", name, ROLE_DTYPE, stored}
#define OPAQUE(module, name) {module, name, ROLE_OPAQUE, CAB_S_NONE}
#define BUILTIN(name) OPAQUE("builtins", name), OPAQUE("__builtin__", name) /* of protocol 3 on; of protocol 2 */

const PickleGlobal cab_pickle_globals[] = {
    {"torch._utils", "_rebuild_tensor_v2", ROLE_TENSOR, CAB_S_NONE},
    {"torch._utils", "_rebuild_tensor", ROLE_TENSOR, CAB_S_NONE},
    {"torch._utils", "_rebuild_tensor_v3", ROLE_TENSOR_DTYPE, CAB_S_NONE},
    {"torch._utils", "_rebuild_parameter", ROLE_FIRST_TENSOR, CAB_S_NONE},
    {"torch._utils", "_rebuild_parameter_with_state", ROLE_FIRST_TENSOR, CAB_S_NONE},
    {"torch._tensor", "_rebuild_from_type_v2", ROLE_TYPED, CAB_S_NONE},
    STORAGE("FloatStorage", CAB_S_F32), STORAGE("DoubleStorage", CAB_S_F64), STORAGE("HalfStorage", CAB_S_F16),
    STORAGE("BFloat16Storage", CAB_S_BF16), STORAGE("LongStorage", CAB_S_I64), STORAGE("IntStorage", CAB_S_I32),
    STORAGE("ShortStorage", CAB_S_I16), STORAGE("CharStorage", CAB_S_I8), STORAGE("ByteStorage", CAB_S_U8),
    STORAGE("BoolStorage", CAB_S_BOOL), STORAGE("ComplexFloatStorage", CAB_S_NONE), STORAGE("ComplexDoubleStorage", CAB_S_NONE),
    STORAGE("QInt8Storage", CAB_S_NONE), STORAGE("QUInt8Storage", CAB_S_NONE), STORAGE("QInt32Storage", CAB_S_NONE),
    STORAGE("UntypedStorage", CAB_S_U8), {"torch.storage", "UntypedStorage", ROLE_STORAGE, CAB_S_U8},
    DTYPE("float32", CAB_S_F32), DTYPE("float64", CAB_S_F64), DTYPE("float16", CAB_S_F16), DTYPE("bfloat16", CAB_S_BF16),
    DTYPE("float8_e4m3fn", CAB_S_F8_E4M3), DTYPE("float8_e5m2", CAB_S_F8_E5M2), DTYPE("bool", CAB_S_BOOL), DTYPE("uint8", CAB_S_U8),
    DTYPE("int8", CAB_S_I8), DTYPE("int16", CAB_S_I16), DTYPE("int32", CAB_S_I32), DTYPE("int64", CAB_S_I64),
    DTYPE("uint16", CAB_S_U16), DTYPE("uint32", CAB_S_U32), DTYPE("uint64", CAB_S_U64), DTYPE("complex64", CAB_S_NONE),
    DTYPE("complex128", CAB_S_NONE),
    {"torch", "Size", ROLE_SIZE, CAB_S_NONE},
    {"collections", "OrderedDict", ROLE_DICT, CAB_S_NONE},
    {"collections", "defaultdict", ROLE_DICT, CAB_S_NONE},
    {"torch.nn.parameter", "Parameter", ROLE_FIRST_TENSOR, CAB_S_NONE},
    OPAQUE("argparse", "Namespace"), OPAQUE("types", "SimpleNamespace"), OPAQUE("torch", "device"), OPAQUE("torch", "Tensor"),
    OPAQUE("torch.serialization", "_get_layout"), OPAQUE("torch.torch_version", "TorchVersion"), OPAQUE("_codecs", "encode"),
    OPAQUE("numpy.core.multiarray", "scalar"), OPAQUE("numpy._core.multiarray", "scalar"),
    OPAQUE("numpy.core.multiarray", "_reconstruct"), OPAQUE("numpy._core.multiarray", "_reconstruct"), OPAQUE("numpy", "dtype"),
    OPAQUE("numpy", "ndarray"), OPAQUE("pathlib", "Path"), OPAQUE("pathlib", "PosixPath"), OPAQUE("pathlib", "PurePosixPath"),
    OPAQUE("pathlib", "WindowsPath"), OPAQUE("pathlib._local", "PosixPath"), OPAQUE("datetime", "datetime"),
    OPAQUE("datetime", "date"), OPAQUE("datetime", "timedelta"),
    OPAQUE("copyreg", "_reconstructor"), OPAQUE("copy_reg", "_reconstructor"), BUILTIN("set"), BUILTIN("frozenset"), BUILTIN("dict"),
    BUILTIN("list"), BUILTIN("tuple"), BUILTIN("int"), BUILTIN("float"), BUILTIN("bool"), BUILTIN("str"), BUILTIN("bytes"),
    BUILTIN("bytearray"), BUILTIN("complex"), BUILTIN("slice"), BUILTIN("range"), BUILTIN("object"), OPAQUE("__builtin__", "long"),
    OPAQUE("__builtin__", "xrange"), OPAQUE("collections", "Counter"),
    OPAQUE("collections", "deque"), OPAQUE("numpy.core.numeric", "_frombuffer"), OPAQUE("numpy._core.numeric", "_frombuffer"),
    OPAQUE("torch._utils", "_rebuild_sparse_tensor"), OPAQUE("torch._utils", "_rebuild_qtensor"), OPAQUE("torch", "per_tensor_affine"),
    OPAQUE("torch", "per_channel_affine"), OPAQUE("torch", "sparse_coo"), OPAQUE("torch", "strided"), OPAQUE("typing", "Any"),
    OPAQUE("typing", "Union"), OPAQUE("easydict", "EasyDict"), OPAQUE("addict.addict", "Dict"), OPAQUE("yacs.config", "CfgNode"),
    OPAQUE("omegaconf.dictconfig", "DictConfig"), OPAQUE("omegaconf.listconfig", "ListConfig"), OPAQUE("omegaconf.base", "ContainerMetadata"),
    OPAQUE("omegaconf.base", "Metadata"), OPAQUE("omegaconf.nodes", "AnyNode"), OPAQUE("pytorch_lightning.utilities.parsing", "AttributeDict"),
    OPAQUE("lightning.fabric.utilities.data", "AttributeDict"),
};

static bool same(const char *text, const uint8_t *bytes, uint64_t length) { return strlen(text) == length && !memcmp(text, bytes, length); }

int cab_pickle_global(const uint8_t *module, uint64_t module_length, const uint8_t *name, uint64_t name_length) {
  for (size_t i = 0; i < sizeof cab_pickle_globals / sizeof *cab_pickle_globals; i++)
    if (same(cab_pickle_globals[i].name, name, name_length) && same(cab_pickle_globals[i].module, module, module_length)) return (int)i;
  return -1;
}
