"""llama.cpp's own argument parser, called in the library that xllamacpp carries (tested: xllamacpp 2026.10.11549, build b11549).

The library exports `common_params_parse` of llama.cpp's common/arg.cpp, and the Python class CommonParams holds the structure
that it fills. The offset of the structure is found by its first six fields, so that another layout stops with a message.
"""
import ctypes
import struct

import xllamacpp
import xllamacpp.xllamacpp as native

PARSE = "_Z19common_params_parseiPPcR13common_params13llama_examplePFviS0_E"
SERVER = 12  # LLAMA_EXAMPLE_SERVER of common/common.h
# n_predict, n_ctx, n_batch, n_ubatch, n_keep, n_chunks
FIRST_FIELDS = struct.pack("<6i", -1, 0, 2048, 512, 0, -1)

_parse = getattr(ctypes.CDLL(native.__file__), PARSE)
_parse.restype = ctypes.c_bool
_parse.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]


def parse(words):
    """The parameters that llama-server reads from these words, or None if it refuses them; reasons go to standard error."""
    params = xllamacpp.CommonParams()
    params.port = 8080  # llama.cpp's own default; xllamacpp lets the system choose
    offset = ctypes.string_at(id(params), params.__sizeof__()).find(FIRST_FIELDS)
    if offset < 0:
        raise SystemExit("this xllamacpp lays its parameters out in another way: take 2026.10.11549")
    argv = (ctypes.c_char_p * (len(words) + 2))(b"llama-server", *[word.encode() for word in words], None)
    read = _parse(len(words) + 1, ctypes.addressof(argv), id(params) + offset, SERVER, None)
    return params if read else None
