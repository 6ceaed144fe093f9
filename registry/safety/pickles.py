"""Files that run code when they are loaded: pickles, and what holds pickles, looked through without loading them.

picklescan (MIT) lists what a pickle would import. What is not known to be harmless is not harmless here, and a file
that cannot be looked through to its end is none that can be trusted.
"""

import errno
import io
import logging
import zipfile
from pathlib import PurePosixPath

from picklescan.scanner import SafetyLevel, scan_bytes

from registry.store.interface import Store, StoreError

# What torch.load, joblib and numpy take, whatever it is called otherwise. CTranslate2's model.bin is no pickle, and
# found to be none.
_ENDINGS = frozenset(
    {
        *(".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dat", ".data", ".npy", ".npz", ".zip"),
        *(".7z", ".tar", ".nemo", ".model", ".mar"),
    }
)
_PICKLE = tuple(bytes((0x80, version)) for version in range(6))
_SEVEN_ZIP = b"7z\xbc\xaf\x27\x1c"
_HOLDERS = (b"PK\x03\x04", b"PK\x05\x06", _SEVEN_ZIP)
# What torch.load takes even with weights_only (torch/_weights_only_unpickler.py) and picklescan does not know of.
_HARMLESS = frozenset(
    {
        *("torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor", "torch._utils._rebuild_qtensor"),
        *("torch._utils._rebuild_sparse_tensor", "torch.Size", "torch.device", "torch.nn.parameter.Parameter"),
        *("_codecs.encode", "builtins.set", "__builtin__.set", "builtins.bytearray", "__builtin__.bytearray"),
        "collections.Counter",
    }
)
# A pickle describes tensors, it does not hold them; one that is larger is not read into memory to be looked at.
MAX_OPCODE = 64 << 20
MAX_PICKLE_IN_ZIP = 256 << 20
WINDOW = 1 << 20
# What tells a pickle, or a holder of pickles, by its beginning; in bytes.
HEAD = 8


class Unsafe(Exception):
    """A file that would run code when it is loaded, or of which nobody can tell; the message says which."""


def may_be_pickle(path: str) -> bool:
    """Whether a file of this name is looked through, whatever it holds."""
    return PurePosixPath(path).suffix.lower() in _ENDINGS


def begins_like_pickle(head: bytes) -> bool:
    """Whether a file whose first HEAD bytes (all of them, where it has fewer) are `head` is, whatever its name."""
    return head.startswith(_PICKLE + _HOLDERS)


def check_pickles(store: Store, path: str, digest: str, size: int) -> None:
    """Look through the blob of the file at `path`. Raises Unsafe, StoreError."""
    file = BlobFile(store, digest, size)
    blob = _Window(file, size)
    head = blob.peek(HEAD)[:HEAD]
    if not head or not (may_be_pickle(path) or begins_like_pickle(head)):
        return
    ending = PurePosixPath(path).suffix.lower()
    logging.getLogger("picklescan").setLevel(logging.CRITICAL)  # what it finds is told by us, once
    try:
        _check_archive(blob)
        result = scan_bytes(blob, path, ending)
    except Unsafe:
        raise
    except Exception as error:  # whatever a hostile file makes the scanner stumble over
        if file.failure is None:
            raise Unsafe(f"cannot be looked through for code ({type(error).__name__}: {error})") from error
    if file.failure is not None:  # the scanner takes an error for the end of the pickle
        raise file.failure
    if blob.too_much:
        raise Unsafe(f"holds {blob.too_much} bytes in one piece, which is not looked through")
    imports = {f"{each.module}.{each.name}": each.safety for each in result.globals}
    if evil := [name for name, safety in imports.items() if safety == SafetyLevel.Dangerous]:
        raise Unsafe(f"would run code when it is loaded ({_some(evil)})")
    if unknown := [n for n, safety in imports.items() if safety != SafetyLevel.Innocuous and n not in _HARMLESS]:
        raise Unsafe(f"loads what is not known to be harmless ({_some(unknown)})")
    if result.scan_err:
        raise Unsafe("is a pickle that is broken off, and cannot be looked through for code")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more


def _check_archive(blob: io.BufferedReader) -> None:
    """Refuse an archive whose pickles would fill the memory, or that only other programs open."""
    if blob.peek(6)[:6] == _SEVEN_ZIP:
        raise Unsafe("is a 7z archive, which is not looked through for code")
    if zipfile.is_zipfile(blob):
        with zipfile.ZipFile(blob) as archive:
            for entry in archive.infolist():
                packed = entry.compress_type != zipfile.ZIP_STORED
                pickled = PurePosixPath(entry.filename).suffix in (".pkl", ".pickle", ".joblib", ".dat", ".data")
                if (packed or pickled) and entry.file_size > MAX_PICKLE_IN_ZIP:
                    raise Unsafe(f"holds {entry.filename} of {entry.file_size} bytes, which is not looked through")
    blob.seek(0)


class _Window(io.BufferedReader):
    """Reads no more at once than a pickle needs: a piece of a thousand gigabytes is easily written down.

    One that is longer than what is left of the file ends the pickle here as it does where it is loaded.
    """

    too_much = 0

    def __init__(self, blob: "BlobFile", size: int) -> None:
        super().__init__(blob, WINDOW)
        self._size = size

    def read(self, size: int | None = -1, /) -> bytes:
        """See `io.BufferedReader`. Raises ValueError for more than is there; and for too much, which is noted."""
        if size is not None and size > MAX_OPCODE:
            if size <= self._size - self.tell():
                self.too_much = max(self.too_much, size)
            raise ValueError("more than a pickle needs")
        return super().read(size)


class BlobFile(io.RawIOBase):
    """A blob as a file that can be read anywhere; each read is a range of the store."""

    def __init__(self, store: Store, digest: str, size: int) -> None:
        super().__init__()
        self._store = store
        self._digest = digest
        self._size = size
        self._at = 0
        self.failure: StoreError | None = None
        """Why it could not be read, if it could not."""

    def readable(self) -> bool:
        """It can."""
        return True

    def seekable(self) -> bool:
        """It can."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go there."""
        at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        if at < 0:
            raise OSError(errno.EINVAL, "before the beginning")
        self._at = at
        return at

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]  # what BufferedReader gives
        """Read into `buffer`."""
        end, done = min(self._at + len(buffer), self._size), 0
        try:
            for chunk in self._store.read_blob(self._digest, self._at, end) if end > self._at else ():
                buffer[done : done + len(chunk)] = chunk
                done += len(chunk)
        except StoreError as error:
            self.failure = error
            raise
        self._at += done
        return done
