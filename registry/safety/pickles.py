"""Scan pickles, and archives of pickles, for code that runs on loading, without loading them.

picklescan (MIT) lists the imports of a pickle. Imports that are not known to be harmless are refused, as are files that
cannot be scanned completely.
"""

import errno
import io
import logging
import zipfile
from pathlib import PurePosixPath

from picklescan.scanner import SafetyLevel, scan_bytes

from registry.store.interface import Store, StoreError

# Suffixes that torch.load, joblib and numpy load. CTranslate2's model.bin is not a pickle; its content shows that.
_SUFFIXES = frozenset(
    {
        *(".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dat", ".data", ".npy", ".npz", ".zip"),
        *(".7z", ".tar", ".nemo", ".model", ".mar"),
    }
)
_PICKLE = tuple(bytes((0x80, version)) for version in range(6))
_SEVEN_ZIP = b"7z\xbc\xaf\x27\x1c"
_ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06", _SEVEN_ZIP)
# Accepted by torch.load with weights_only (torch/_weights_only_unpickler.py) and unknown to picklescan.
_HARMLESS = frozenset(
    {
        *("torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor", "torch._utils._rebuild_qtensor"),
        *("torch._utils._rebuild_sparse_tensor", "torch.Size", "torch.device", "torch.nn.parameter.Parameter"),
        *("_codecs.encode", "builtins.set", "__builtin__.set", "builtins.bytearray", "__builtin__.bytearray"),
        "collections.Counter",
    }
)
# Limits in bytes: a pickle describes tensors without containing them, so a larger one is not read into memory.
MAX_OPCODE = 64 << 20
MAX_PICKLE_IN_ZIP = 256 << 20
WINDOW = 1 << 20
# The bytes that identify a pickle or an archive.
MAGIC_BYTES = 8


class Unsafe(Exception):
    """A file runs code when it is loaded, or may do so; the message completes a sentence that starts with its path."""


def may_be_pickle(path: str) -> bool:
    """Whether a file of this name is scanned, whatever its content."""
    return PurePosixPath(path).suffix.lower() in _SUFFIXES


def check_pickles(
    store: Store, path: str, digest: str, size: int, *, max_object: int = MAX_OPCODE, window: int = WINDOW
) -> None:
    """Scan the blob of the file at `path`. Raises Unsafe, StoreError."""
    file = BlobFile(store, digest, size)
    blob = _Window(file, size, max_object, window)
    head = blob.peek(MAGIC_BYTES)[:MAGIC_BYTES]
    if not head or not (may_be_pickle(path) or head.startswith(_PICKLE + _ARCHIVES)):
        return
    ending = PurePosixPath(path).suffix.lower()
    logging.getLogger("picklescan").setLevel(logging.CRITICAL)  # we report its findings
    try:
        _check_archive(blob)
        result = scan_bytes(blob, path, ending)
    except Unsafe:
        raise
    except Exception as error:  # any error that a hostile file causes in the scanner
        if file.failure is None:
            raise Unsafe(f"cannot be scanned for code ({type(error).__name__}: {error})") from error
    if file.failure is not None:  # the scanner treats a read error as the end of the pickle
        raise file.failure
    if blob.too_large:
        raise Unsafe(f"contains an object of {blob.too_large} bytes, which is too large to scan")
    imports = {f"{each.module}.{each.name}": each.safety for each in result.globals}
    if dangerous := [name for name, safety in imports.items() if safety == SafetyLevel.Dangerous]:
        raise Unsafe(f"runs code when it is loaded ({_some(dangerous)})")
    if unknown := [n for n, safety in imports.items() if safety != SafetyLevel.Innocuous and n not in _HARMLESS]:
        raise Unsafe(f"imports what is not known to be harmless ({_some(unknown)})")
    if result.scan_err:
        raise Unsafe("is a truncated pickle and cannot be scanned for code")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more


def _check_archive(blob: io.BufferedReader) -> None:
    """Refuse an archive whose pickles would exhaust memory, or that cannot be opened here."""
    if blob.peek(6)[:6] == _SEVEN_ZIP:
        raise Unsafe("is a 7z archive, which cannot be scanned for code")
    if zipfile.is_zipfile(blob):
        with zipfile.ZipFile(blob) as archive:
            for entry in archive.infolist():
                packed = entry.compress_type != zipfile.ZIP_STORED
                pickled = PurePosixPath(entry.filename).suffix in (".pkl", ".pickle", ".joblib", ".dat", ".data")
                if (packed or pickled) and entry.file_size > MAX_PICKLE_IN_ZIP:
                    raise Unsafe(f"contains {entry.filename} of {entry.file_size} bytes, which is too large to scan")
    blob.seek(0)


class _Window(io.BufferedReader):
    """Limits the size of a read, since a pickle can declare an object of any size.

    An object longer than the rest of the file ends the pickle, as it does on loading.
    """

    too_large = 0

    def __init__(self, blob: "BlobFile", size: int, max_object: int, window: int) -> None:
        super().__init__(blob, window)
        self._size = size
        self._max_object = max_object

    def read(self, size: int | None = -1, /) -> bytes:
        """See `io.BufferedReader`. Raises ValueError over `max_object`; records a size that the file can contain."""
        if size is not None and size > self._max_object:
            if size <= self._size - self.tell():
                self.too_large = max(self.too_large, size)
            raise ValueError("object too large")
        return super().read(size)


class BlobFile(io.RawIOBase):
    """A blob as a seekable file; each read is a range request to the store."""

    def __init__(self, store: Store, digest: str, size: int) -> None:
        super().__init__()
        self._store = store
        self._digest = digest
        self._size = size
        self._position = 0
        self.failure: StoreError | None = None
        """The error of a failed read."""

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Change the position."""
        at = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence] + offset
        if at < 0:
            raise OSError(errno.EINVAL, "negative position")
        self._position = at
        return at

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]  # what BufferedReader gives
        """Read into `buffer`."""
        end, done = min(self._position + len(buffer), self._size), 0
        try:
            for chunk in self._store.read_blob(self._digest, self._position, end) if end > self._position else ():
                buffer[done : done + len(chunk)] = chunk
                done += len(chunk)
        except StoreError as error:
            self.failure = error
            raise
        self._position += done
        return done
