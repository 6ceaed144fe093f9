"""Check what headers and indexes say of a model's files, before an engine fails on them.

Safetensors: https://github.com/huggingface/safetensors#format; GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md;
Git LFS pointers: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md.
"""

import io
import json
import math
import posixpath
import re
import struct
import zipfile
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from kit.units import human_bytes
from registry.models.manifest import FileEntry
from registry.safety.blob_file import BlobFile
from registry.store.interface import Store

# Without the line break, which may have become that of Windows.
_POINTERS = (b"version https://git-lfs.github.com/spec/v1", b"version https://hawser.github.com/spec/v1")
MAX_POINTER = 1024
_WEIGHTS = frozenset(
    {".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".onnx", ".onnx_data", ".msgpack", ".npz"}
)
# Suffixes of which torch writes zip archives.
_TORCH = frozenset({".bin", ".pt", ".pth", ".ckpt"})
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)", re.ASCII)
_INDEX = re.compile(r".+\.(safetensors|bin|pt|pth|h5|msgpack)\.index(\.\w+)?\.json", re.ASCII)
MAX_INDEX = 32 << 20
# In bytes; the largest headers in use have a tenth of it, the library permits 100 MB.
MAX_HEADER = 16 << 20
# Type of a safetensors tensor -> bits of an element.
_SAFETENSORS_BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
    **{"U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32},
    **{"U64": 64, "I64": 64, "F64": 64, "C64": 64},
}
# Those of a torch tensor.
MAX_DIMENSIONS = 64
MAX_GGUF_COUNT = 1 << 24
MAX_GGUF_DIMENSIONS = 8
_GGUF_VERSIONS = frozenset({2, 3})
# Bytes of GGUF's metadata types; strings (8) and arrays (9) have a length.
_GGUF_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_GGUF_STRING, _GGUF_ARRAY = 8, 9
# Type of a tensor -> elements and bytes of a block (GGML_QUANT_SIZES in the package gguf).
_GGML_BLOCKS = {
    **{0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40)},
    **{10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292)},
    **{16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82)},
    **{23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2)},
    **{34: (256, 54), 35: (256, 66), 39: (32, 17)},
}


class Incomplete(Exception):
    """A file cannot be loaded; the message completes a sentence that starts with its path."""


class MissingShards(Exception):
    """Files of a numbered series are missing; the message names the first."""


def is_index(path: str) -> bool:
    """Whether a file of this name may list other files."""
    return _INDEX.fullmatch(PurePosixPath(path).name) is not None


def check_series(paths: Iterable[str], listed: Collection[str]) -> None:
    """Check that each `x-00001-of-00003` of `paths` has its other two in `listed`. Raises MissingShards."""
    checked = set()
    for path in paths:
        folder, _, name = path.rpartition("/")
        shard = _SHARD.fullmatch(name)
        if shard is None or shard["suffix"] not in _WEIGHTS:
            continue
        stem, count, suffix = posixpath.join(folder, shard["stem"]), shard["count"], shard["suffix"]
        if (stem, count, suffix) in checked:
            continue
        checked.add((stem, count, suffix))
        for number in range(1, int(count) + 1):
            other = f"{stem}-{number:05}-of-{count}{suffix}"
            if other not in listed:
                raise MissingShards(f"{other}, to which {path} belongs, is missing")


def check_file(store: Store, file: FileEntry, listed: Collection[str]) -> None:
    """Check one stored file. `listed`: all paths of the model, those left out included.

    Raises Incomplete, StoreError.
    """
    suffix = PurePosixPath(file.path).suffix.lower()
    if file.size <= MAX_POINTER and _read(store, file, MAX_POINTER).startswith(_POINTERS):
        raise Incomplete("is a Git LFS pointer instead of the file. Run `git lfs pull` where it comes from")
    if file.size == 0 and suffix in _WEIGHTS:
        raise Incomplete("is empty. Copy it again from its origin")
    stream = io.BufferedReader(BlobFile(store, file.sha256, file.size), 1 << 16)
    try:
        if suffix == ".safetensors":
            _check_safetensors(stream, file.size)
        elif suffix == ".gguf":
            _check_gguf(stream, file.size)
        elif suffix in _TORCH and stream.peek(4).startswith(b"PK\x03\x04") and not zipfile.is_zipfile(stream):
            raise _truncated("its zip archive has no end")
        elif is_index(file.path):
            _check_index(file, _read(store, file, MAX_INDEX), listed)
    except (EOFError, ValueError, RecursionError) as error:
        raise Incomplete(f"is not valid: {error}. Copy it again from its origin") from error


def _check_safetensors(stream: BinaryIO, size: int) -> None:
    (length,) = struct.unpack("<Q", _exactly(stream, 8))
    if length > MAX_HEADER:
        raise ValueError(f"its safetensors header would have {length} bytes")
    if 8 + length > size:
        raise _truncated(f"its header needs {8 + length} bytes, the file has {size}")
    header: Any = json.loads(_exactly(stream, length))
    if not isinstance(header, dict):
        raise ValueError("its safetensors header is not a JSON object")
    end = 0
    for start, stop in sorted(_offsets(name, value) for name, value in header.items() if name != "__metadata__"):
        if start != end:
            raise ValueError(f"no tensor has the bytes from {end} to {start}")
        end = stop
    if 8 + length + end > size:
        raise _truncated(f"its header promises {8 + length + end} bytes, the file has {size}")
    if 8 + length + end < size:
        raise ValueError(f"its header ends with {8 + length + end} bytes, the file has {size}")


def _offsets(name: str, value: Any) -> tuple[int, int]:
    """Return where a tensor begins and ends, if its type and shape agree; one of a newer type is not judged."""
    match value:
        case {"data_offsets": [int(start), int(stop)]} if 0 <= start <= stop:
            pass
        case _:
            raise ValueError(f"tensor {name!r:.100} has no data_offsets")
    match value:
        case {"dtype": str(dtype), "shape": [*shape]} if len(shape) <= MAX_DIMENSIONS and all(map(_is_length, shape)):
            bits = math.prod(shape) * _SAFETENSORS_BITS.get(dtype, 0)
        case _:
            raise ValueError(f"tensor {name!r:.100} has no dtype and shape")
    if dtype in _SAFETENSORS_BITS and bits != (stop - start) * 8:
        raise ValueError(f"tensor {name!r:.100} has {stop - start} bytes, which its type and shape contradict")
    return start, stop


def _is_length(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 64


def _check_gguf(stream: BinaryIO, size: int) -> None:
    if _exactly(stream, 4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    (version,) = struct.unpack("<I", _exactly(stream, 4))
    if version not in _GGUF_VERSIONS:
        return  # version 1 is obsolete; big-endian files read as a version like 0x03000000
    tensors, pairs = struct.unpack("<QQ", _exactly(stream, 16))
    if max(tensors, pairs) > MAX_GGUF_COUNT:
        raise ValueError(f"its header lists {max(tensors, pairs)} entries")
    try:
        alignment = _skip_gguf_metadata(stream, pairs)
        end = max((_gguf_tensor_end(stream) for _ in range(tensors)), default=0)
    except EOFError:
        raise _truncated("its header is not complete") from None
    start = -(-stream.tell() // alignment) * alignment
    if tensors and start + end > size:
        raise _truncated(f"its header promises {start + end} bytes, the file has {size}")


def _skip_gguf_metadata(stream: BinaryIO, pairs: int) -> int:
    """Return the alignment of the tensors."""
    alignment = 32
    for _ in range(pairs):
        key = _exactly(stream, _integer(stream, 8))
        kind = _integer(stream, 4)
        if key == b"general.alignment" and kind == 4:
            alignment = _integer(stream, 4) or 1
        else:
            _skip_gguf_value(stream, kind)
    return alignment


def _skip_gguf_value(stream: BinaryIO, kind: int) -> None:
    if kind in _GGUF_SCALARS:
        _exactly(stream, _GGUF_SCALARS[kind])
    elif kind == _GGUF_STRING:
        _exactly(stream, _integer(stream, 8))
    elif kind == _GGUF_ARRAY:
        of, count = _integer(stream, 4), _integer(stream, 8)
        if count > MAX_GGUF_COUNT:
            raise ValueError(f"its header has an array of {count} values")
        if of in _GGUF_SCALARS:
            _exactly(stream, _GGUF_SCALARS[of] * count)
        else:
            for _ in range(count):
                _skip_gguf_value(stream, of)
    else:
        raise ValueError(f"its header has a value of unknown type {kind}")


def _gguf_tensor_end(stream: BinaryIO) -> int:
    """Read the description of a tensor; return where it ends. A tensor of a newer type counts as one byte."""
    _exactly(stream, _integer(stream, 8))
    dimensions = _integer(stream, 4)
    if dimensions > MAX_GGUF_DIMENSIONS:
        raise ValueError(f"it has a tensor of {dimensions} dimensions")
    elements = math.prod(_integer(stream, 8) for _ in range(dimensions))
    kind, offset = _integer(stream, 4), _integer(stream, 8)
    block, length = _GGML_BLOCKS.get(kind, (elements or 1, 1))
    return offset + elements // block * length


def _check_index(file: FileEntry, content: bytes, listed: Collection[str]) -> None:
    """Check that the files of a `weight_map` exist; one that safetensors beside it replace is not judged."""
    if file.size > MAX_INDEX:
        raise Incomplete(f"has {human_bytes(file.size)}, which is too large to check")
    index: Any = json.loads(content)
    weights = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weights, dict):
        raise ValueError("it has no weight_map")
    if not weights or not all(isinstance(name, str) for name in weights.values()):
        raise ValueError("its weight_map does not map tensors to files")
    folder = posixpath.dirname(file.path)
    if ".safetensors.index" not in file.path and _has_safetensors(folder, listed):
        return
    missing = sorted(
        name for name in set(weights.values()) if posixpath.normpath(posixpath.join(folder, name)) not in listed
    )
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise Incomplete(f"lists {missing[0]!r:.200}{more}, which the model does not have. Add what is missing")


def _has_safetensors(folder: str, paths: Iterable[str]) -> bool:
    return any(posixpath.dirname(path) == folder and path.endswith(".safetensors") for path in paths)


def _truncated(reason: str) -> Incomplete:
    return Incomplete(f"is truncated: {reason}. Copy it again from its origin")


def _integer(stream: BinaryIO, length: int) -> int:
    return int.from_bytes(_exactly(stream, length), "little")


def _exactly(stream: BinaryIO, length: int) -> bytes:
    if length > MAX_HEADER:
        raise ValueError(f"its header has a field of {length} bytes")
    data = stream.read(length)
    if len(data) < length:
        raise EOFError("its header ends too early")
    return data


def _read(store: Store, file: FileEntry, limit: int) -> bytes:
    return b"".join(store.read_blob(file.sha256, 0, min(file.size, limit)))
