"""Scan pickles, and archives of pickles, for code that runs on loading, without loading them.

The imports of a pickle must be known to be harmless, by the lists of picklescan (MIT) and `_HARMLESS`. A file with the
ending of a pickle that is compressed, or that cannot be followed to its end, is refused: it may contain anything.
"""

import ast
import bz2
import contextlib
import io
import logging
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from picklescan.relaxed_zipfile import RelaxedZipFile
from picklescan.scanner import SafetyLevel, scan_pickle_bytes

from registry.safety.blob_file import BlobFile
from registry.safety.opcodes import MAX_OPCODES, follow
from registry.store.interface import Store

# Suffixes of files that contain nothing but a pickle, or a zip archive of pickles.
_PICKLES = frozenset(
    {".pt", ".pth", ".th", ".ckpt", ".pkl", ".pickle", ".p", ".joblib", ".dill", ".cloudpickle", ".npz", ".zip", ".mar"}
)
# Suffixes of files that may contain one. CTranslate2's model.bin is none; its content shows that.
_SUFFIXES = _PICKLES | {".bin", ".dat", ".data", ".npy", ".7z", ".rar", ".tar", ".tgz", ".nemo", ".model", ".sav"}
_COMPRESSED = frozenset({".gz", ".bz2", ".xz", ".lzma", ".zst", ".lz4", ".z"})
_PICKLE = tuple(bytes((0x80, version)) for version in range(6))
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
# Bytes of the records at the end of a zip archive, and of the longest comment behind them (APPNOTE.TXT, 4.3.14 to 16).
_END, _END64, _LOCATOR64, _COMMENT = 22, 56, 20, 0xFFFF
_NUMPY = b"\x93NUMPY"
# Archives that are not opened here, under any name.
_ARCHIVES = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"\x04\x22\x4d\x18": "compressed (lz4)",
}
# Compression that joblib undoes by itself, or a loader may.
_COMPRESSION = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x5d\x00\x00": "lzma"}
_UNREADABLE_COMPRESSION = {b"\x28\xb5\x2f\xfd": "zstd", b"ZF": "joblib"}
# Accepted by torch.load with weights_only (torch/_weights_only_unpickler.py) and unknown to picklescan.
_HARMLESS = frozenset(
    {
        *("torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor", "torch._utils._rebuild_qtensor"),
        *("torch._utils._rebuild_sparse_tensor", "torch.Size", "torch.device", "torch.nn.parameter.Parameter"),
        *("_codecs.encode", "builtins.set", "__builtin__.set", "builtins.bytearray", "__builtin__.bytearray"),
        "collections.Counter",
    }
)
# In bytes: a larger compressed entry of an archive is not unpacked.
MAX_UNPACKED = 256 << 20
WINDOW = 1 << 20
_PEEK = 64 << 10


class Unsafe(Exception):
    """A file runs code when it is loaded, or may do so; the message completes a sentence that starts with its path."""


def may_be_pickle(path: str) -> bool:
    """Whether a file of this name is scanned, whatever its content."""
    name = PurePosixPath(path.lower())
    suffix = PurePosixPath(name.stem).suffix if name.suffix in _COMPRESSED else name.suffix
    return suffix in _SUFFIXES


def check_pickles(store: Store, path: str, digest: str, size: int, *, window: int = WINDOW) -> None:
    """Scan the blob of the file at `path`. Raises Unsafe, StoreError."""
    logging.getLogger("picklescan").setLevel(logging.CRITICAL)  # we report its findings
    file = BlobFile(store, digest, size)
    try:
        _check(io.BufferedReader(file, window), path, size)
    except Exception as error:  # any error that a hostile file causes
        if file.failure is not None:
            raise file.failure from error
        if isinstance(error, Unsafe):
            raise
        raise Unsafe(f"cannot be scanned for code ({type(error).__name__}: {error})") from error
    if file.failure is not None:  # a parser may take a read error for the end of the file
        raise file.failure


def _check(stream: BinaryIO, path: str, size: int, *, inside: bool = False, opcodes: int = 0) -> int:
    """Scan a file, or an entry of an archive (`inside`) after entries of `opcodes`; return the opcodes of both.

    Raises Unsafe, and any error that reading causes.
    """
    head = stream.read(_PEEK)
    stream.seek(0)
    is_pickle, suffix = may_be_pickle(path), PurePosixPath(path).suffix.lower()
    packed = _packing(head)
    if packed and (is_pickle or "archive" in packed or "lz4" in packed):
        raise Unsafe(f"is {packed}, which cannot be scanned for code")
    if head.startswith(_ZIP):
        if inside:
            raise Unsafe("contains an archive in an archive, which is not scanned for code")
        return _check_zip(stream)
    if is_pickle and not inside and zipfile.is_zipfile(stream):
        raise Unsafe("has a zip archive after its beginning: it is two files in one")
    stream.seek(0)
    if head.startswith(_NUMPY):
        return _check_numpy(stream, size, opcodes)
    must_be_pickle = is_pickle or head.startswith(_PICKLE)
    opcodes = _check_pickles(stream, size, opcodes, only_calls=not must_be_pickle, strict=suffix in _PICKLES)
    if packed and (unpacked := _unpacked(head)):
        if unpacked.startswith(_PICKLE):
            raise Unsafe("is a compressed pickle, which cannot be scanned for code")
        opcodes = _check_pickles(io.BytesIO(unpacked), len(unpacked), opcodes, only_calls=True)
    return opcodes


def _check_pickles(stream: BinaryIO, size: int, opcodes: int, *, only_calls: bool, strict: bool = False) -> int:
    """Follow one pickle after another, as a loader may; return their opcodes and those before, `opcodes`.

    `only_calls`: other content may look like an import. `strict`: content that is no pickle is refused. Raises Unsafe.
    """
    while stream.tell() < size:
        at = stream.tell()
        found = follow(stream, size)
        opcodes += found.opcodes + 1
        if found.end == "too long" or opcodes > MAX_OPCODES:
            raise Unsafe("has more opcodes of a pickle than can be scanned for code")
        if strict and at == 0 and found.end == "invalid" and found.opcodes == 0:
            raise Unsafe("is neither a pickle nor a zip archive, so it cannot be scanned for code")
        if found.imports and (found.calls or not only_calls):
            _judge(found.imports)
            if found.end != "stop":
                raise Unsafe("is a truncated pickle and cannot be scanned for code")
        if found.end != "stop":
            break
    return opcodes


def _judge(imports: Iterable[tuple[str, str]]) -> None:
    """Look the imports up in the lists of picklescan. Raises Unsafe."""
    dangerous, unknown = [], []
    for module, name in imports:
        full = f"{module}.{name}"
        if not full.isprintable() or " " in full:
            unknown.append(repr(full))
            continue
        # One pickle for each: a name must not end the list of the others.
        for found in scan_pickle_bytes(io.BytesIO(f"c{module}\n{name}\n.".encode()), full).globals:
            if found.safety == SafetyLevel.Dangerous:
                dangerous.append(full)
            elif found.safety != SafetyLevel.Innocuous and full not in _HARMLESS:
                unknown.append(full)
    if dangerous:
        raise Unsafe(f"runs code when it is loaded ({_some(dangerous)})")
    if unknown:
        raise Unsafe(f"imports what is not known to be harmless ({_some(unknown)})")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more


def _check_zip(stream: BinaryIO) -> int:
    """Scan every entry; return their opcodes.

    Raises Unsafe, and BadZipFile where a loader might read what we cannot.
    """
    opcodes = 0
    with RelaxedZipFile(stream) as archive:
        if _directory_by_offsets(stream) != archive.start_dir:
            raise Unsafe("has a second directory of its zip archive: loaders may read others than those scanned")
        for entry in archive.infolist():
            if entry.is_dir() and not entry.file_size:
                continue
            if entry.compress_type != zipfile.ZIP_STORED and entry.file_size > MAX_UNPACKED:
                raise Unsafe(f"contains {entry.filename} of {entry.file_size} bytes, which is too large to scan")
            with archive.open(entry) as part:
                try:
                    size = entry.file_size
                    opcodes = _check(cast(BinaryIO, part), entry.filename, size, inside=True, opcodes=opcodes)
                except Unsafe as error:
                    raise Unsafe(f"contains {entry.filename}, which {error}") from None
    return opcodes


def _directory_by_offsets(stream: BinaryIO) -> int | None:
    """Return where a zip archive says that its directory is; None if its end contradicts itself.

    Torch's reader (miniz) follows these offsets, Python takes what is in front of the end for the directory.
    """
    size = stream.seek(0, io.SEEK_END)
    start = max(size - _END - _COMMENT - _LOCATOR64 - _END64, 0)
    stream.seek(start)
    tail = stream.read()
    end = tail.rfind(b"PK\x05\x06", 0, len(tail) - _END + 4)
    (offset,) = struct.unpack_from("<I", tail, end + 16)
    locator = end - _LOCATOR64
    if locator < 0 or not tail.startswith(b"PK\x06\x07", locator):
        return int(offset)
    end64 = locator - _END64
    if end64 < 0 or not tail.startswith(b"PK\x06\x06", end64):
        return None
    (named,) = struct.unpack_from("<Q", tail, locator + 8)
    (offset64,) = struct.unpack_from("<Q", tail, end64 + 48)
    return int(offset64) if named == start + end64 and offset in (offset64, 0xFFFFFFFF) else None


def _check_numpy(stream: BinaryIO, size: int, opcodes: int) -> int:
    """Scan an array of numpy: pickles follow its header if it holds objects (numpy.lib.format)."""
    major = stream.read(8)[6]
    (length,) = struct.unpack("<H" if major == 1 else "<I", stream.read(2 if major == 1 else 4))
    header = ast.literal_eval(stream.read(min(length, _PEEK)).decode("latin-1").strip())
    # Objects are `O` or `object`, also in a list of fields.
    return _check_pickles(stream, size, opcodes, only_calls=False) if "o" in repr(header["descr"]).lower() else opcodes


def _packing(head: bytes) -> str | None:
    """Name the compression or archive that `head` begins."""
    with contextlib.suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
        return "a tar archive"
    for magic, name in _ARCHIVES.items():
        if head.startswith(magic):
            return name
    for magic, name in (_COMPRESSION | _UNREADABLE_COMPRESSION).items():
        if head.startswith(magic):
            return f"compressed ({name})"
    is_zlib = head[:1] == b"\x78" and len(head) > 1 and (head[0] << 8 | head[1]) % 31 == 0
    return "compressed (zlib)" if is_zlib else None


def _unpacked(head: bytes) -> bytes:
    """Unpack the beginning of a compressed file; nothing if that fails."""
    unpackers = (zlib.decompressobj(zlib.MAX_WBITS | 32), bz2.BZ2Decompressor(), lzma.LZMADecompressor())
    for unpacker in unpackers:
        with contextlib.suppress(zlib.error, OSError, lzma.LZMAError):
            return unpacker.decompress(head, _PEEK)
    return b""
