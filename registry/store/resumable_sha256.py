"""A sha256 that can be put down and taken up again: what `hashlib` computes, with a state that can be kept.

Between two blocks of 64 bytes a sha256 is eight words and a count (FIPS 180-4, section 6.2.2). hashlib does not give
them out; the libcrypto behind it does, in a struct that its header `openssl/sha.h` has published since 1.0. Where that
library cannot be called, `ResumableSha256.state` is None, and who keeps states begins such a file again.
"""

import ctypes
import ctypes.util
import functools
import hashlib
import importlib.util

import structlog

log = structlog.get_logger(__name__)

BLOCK = 64


class _Context(ctypes.Structure):
    """SHA256_CTX of openssl/sha.h."""

    _fields_ = (
        ("h", ctypes.c_uint32 * 8),
        ("bits_low", ctypes.c_uint32),
        ("bits_high", ctypes.c_uint32),
        ("data", ctypes.c_uint32 * 16),
        ("num", ctypes.c_uint),
        ("md_len", ctypes.c_uint),
    )


class ResumableSha256:
    """Fed from the beginning, or from where `state` was taken. One thread at a time."""

    def __init__(self, state: str | None = None, count: int = 0) -> None:
        """Go on after `count` bytes, a multiple of 64, with the `state` of then. Raises ValueError for a bad state."""
        self.count = count
        self._library = _library()
        if self._library is None:
            if state is not None:
                raise ValueError("this Python's sha256 cannot be taken up again")
            self._plain = hashlib.sha256()
            return
        self._context = _Context()
        self._library.SHA256_Init(ctypes.byref(self._context))
        if state is not None:
            words = bytes.fromhex(state)
            if len(words) != 32 or count < 0 or count % BLOCK:
                raise ValueError("not the state of a sha256")
            self._context.h[:] = [int.from_bytes(words[at : at + 4], "big") for at in range(0, 32, 4)]
            self._context.bits_low = (count * 8) & 0xFFFFFFFF
            self._context.bits_high = (count * 8) >> 32

    def update(self, data: memoryview | bytes) -> None:
        """Feed `data`; other threads run meanwhile."""
        view = memoryview(data)
        self.count += len(view)
        if self._library is None:
            self._plain.update(view)
        elif len(view):
            self._library.SHA256_Update(ctypes.byref(self._context), _address(view), ctypes.c_size_t(len(view)))

    @property
    def state(self) -> str | None:
        """What `__init__` takes, as hex; None between the blocks, and where states cannot be kept."""
        if self._library is None or self.count % BLOCK:
            return None
        return b"".join(int(word).to_bytes(4, "big") for word in self._context.h).hex()

    def hexdigest(self) -> str:
        """The digest of all that was fed; more may be fed afterwards."""
        if self._library is None:
            return self._plain.hexdigest()
        copy = _Context.from_buffer_copy(self._context)
        digest = ctypes.create_string_buffer(32)
        self._library.SHA256_Final(digest, ctypes.byref(copy))
        return digest.raw.hex()


def can_be_resumed() -> bool:
    """Whether states can be kept with this Python."""
    return _library() is not None


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The libcrypto that hashlib itself uses, else the system's, if it proves to compute what hashlib does."""
    spec = importlib.util.find_spec("_hashlib")
    for name in (spec.origin if spec else None, ctypes.util.find_library("crypto")):
        try:
            library = ctypes.CDLL(name) if name and name != "built-in" else None
            if library is not None and _is_right(library):
                return library
        except (OSError, AttributeError):
            continue  # not a library, or without these functions
    log.info("an interrupted sha256 begins again: this Python's libcrypto cannot be called")
    return None


def _is_right(library: ctypes.CDLL) -> bool:
    """Whether the struct is as we know it: a state moved from one context to another goes on to the right digest."""
    first, second, digest = _Context(), _Context(), ctypes.create_string_buffer(32)
    head, tail = bytes(range(BLOCK)) * 3, b"tail"
    library.SHA256_Init(ctypes.byref(first))
    library.SHA256_Update(ctypes.byref(first), head, ctypes.c_size_t(len(head)))
    library.SHA256_Init(ctypes.byref(second))
    second.h[:] = first.h[:]
    second.bits_low = len(head) * 8
    library.SHA256_Update(ctypes.byref(second), tail, ctypes.c_size_t(len(tail)))
    library.SHA256_Final(digest, ctypes.byref(second))
    right = first.num == 0 and first.bits_low == len(head) * 8 and first.md_len == 32
    return right and digest.raw == hashlib.sha256(head + tail).digest()


def _address(view: memoryview) -> ctypes.c_void_p | bytes:
    """What C takes for `view`, without a copy where the memory is writable."""
    if view.readonly:
        return bytes(view)
    return ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(view)))
