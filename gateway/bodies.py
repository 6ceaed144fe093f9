"""The body of a request on its way: JSON in memory, forms in memory or, when they are large, in an unlinked file.

A body is kept until the first byte of the answer, so that it can be sent again.
"""

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

from gateway.endpoints import Endpoint
from gateway.forms import FormScanner, boundary_of, model_part
from gateway.routing import Wants
from gateway.scan import scan_json, with_model
from kit.errors import ApiError, PayloadTooLarge

MB = 1024 * 1024
# A form up to this size stays in memory.
IN_MEMORY = MB
# How much of a spooled form is read and written at a time.
PIECE = 256 * 1024


class SpoolFull(ApiError):
    """No room for an upload on its way."""

    status = 507
    type = "service_unavailable"
    code = "spool_full"


class Body(Protocol):
    """What an exchange needs of a body."""

    def add(self, data: bytes) -> None:
        """Take the next piece. Raises ApiError when it is too large, malformed or finds no room."""

    def wants(self) -> Wants:
        """What the whole body asks for. Raises InvalidRequest when it is malformed."""

    def pieces(self, model: str | None) -> tuple[int, Iterator[bytes]]:
        """The length and the pieces to send, with `model` put in as the model's name unless it is None."""

    def close(self) -> None:
        """Free what the body holds."""


class JsonBody:
    """A JSON body, in memory."""

    __slots__ = ("_data", "_endpoint", "_limit", "_pieces", "_size")

    def __init__(self, endpoint: Endpoint, limit: int) -> None:
        self._endpoint = endpoint
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0
        self._data = b""

    def add(self, data: bytes) -> None:
        """Take the next piece. Raises PayloadTooLarge."""
        self._size += len(data)
        if self._size > self._limit:
            raise too_large(self._limit, "MAX_BODY_MB")
        self._pieces.append(data)

    def wants(self) -> Wants:
        """What the body asks for. Raises InvalidRequest when it is not a JSON object."""
        pieces = self._pieces
        self._data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces = []
        return scan_json(self._data, self._endpoint)

    def pieces(self, model: str | None) -> tuple[int, Iterator[bytes]]:
        """The body as one piece."""
        data = self._data if model is None else with_model(self._data, model)
        return len(data), iter((data,))

    def close(self) -> None:
        """Free the memory."""
        self._data = b""
        self._pieces = []


class Spool:
    """The disk space that all uploads on their way share."""

    def __init__(self, folder: Path | None, quota: int) -> None:
        self._folder = folder
        self._left = quota

    def open(self) -> IO[bytes]:
        """A new file without a name: it goes when it is closed, whatever happens to this process."""
        try:
            return tempfile.TemporaryFile(buffering=0, dir=self._folder)
        except OSError as error:
            raise SpoolFull(f"The gateway cannot keep this upload: {error.strerror}. Check SPOOL_DIR.") from error

    def reserve(self, count: int) -> None:
        """Take `count` bytes of the quota. Raises SpoolFull."""
        if count > self._left:
            raise SpoolFull("Too many uploads are on their way (SPOOL_QUOTA_MB). Try again in a moment.")
        self._left -= count

    def free(self, count: int) -> None:
        """Give `count` bytes back."""
        self._left += count

    @property
    def left(self) -> int:
        """Bytes of the quota that are free."""
        return self._left


class FormBody:
    """A multipart form. Its memory does not grow with its size."""

    def __init__(self, endpoint: Endpoint, content_type: bytes, limit: int, spool: Spool) -> None:
        """Raises InvalidRequest when `content_type` is not that of a form."""
        self._endpoint = endpoint
        self._limit = limit
        self._spool = spool
        self._scanner = FormScanner(boundary_of(content_type))
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._size = 0
        self._reserved = 0

    def add(self, data: bytes) -> None:
        """Take the next piece. Raises PayloadTooLarge, SpoolFull or InvalidRequest."""
        self._size += len(data)
        if self._size > self._limit:
            raise too_large(self._limit, "MAX_UPLOAD_MB")
        self._scanner.feed(data)
        if self._file is None:
            self._memory += data
            if len(self._memory) > IN_MEMORY:
                self._file = self._spool.open()
                self._write(bytes(self._memory))
                self._memory.clear()
        else:
            self._write(data)

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._spool.reserve(len(data))
        self._reserved += len(data)
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise SpoolFull("The gateway's disk is full (SPOOL_DIR). Free some space.") from error

    def wants(self) -> Wants:
        """What the form asks for. Raises InvalidRequest when it is cut off or empty."""
        self._scanner.finish()
        return Wants(self._endpoint, self._scanner.model, stream=self._scanner.stream)

    def pieces(self, model: str | None) -> tuple[int, Iterator[bytes]]:
        """The form, with the model's name replaced or put in front."""
        if model is None:
            return self._size, self._read(0, self._size)
        span = self._scanner.span
        if span is None:
            part = model_part(self._scanner.boundary, model)
            return self._size + len(part), self._with(0, part, 0)
        name = model.encode()
        return self._size - (span[1] - span[0]) + len(name), self._with(span[0], name, span[1])

    def _with(self, before: int, put: bytes, after: int) -> Iterator[bytes]:
        yield from self._read(0, before)
        yield put
        yield from self._read(after, self._size)

    def _read(self, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            count = min(PIECE, end - start)
            if self._file is None:
                yield bytes(self._memory[start : start + count])
            else:
                yield os.pread(self._file.fileno(), count, start)
            start += count

    def close(self) -> None:
        """Free memory, file and quota."""
        self._memory = bytearray()
        if self._file is not None:
            self._file.close()
            self._file = None
        self._spool.free(self._reserved)
        self._reserved = 0


def too_large(limit: int, setting: str) -> PayloadTooLarge:
    """The 413 for a body over `limit` bytes, which `setting` moves."""
    return PayloadTooLarge(f"The body is larger than {limit // MB} MB. {setting} of the gateway moves the limit.")
