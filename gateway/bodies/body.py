"""Bodies of relayed requests: JSON in memory, uploads spooled.

A body is kept until the response ends, so that the request can be sent again.
"""

import io
from collections.abc import Iterable, Iterator
from typing import Protocol

from gateway.bodies.json_members import MAX_CHUNK, MemberScanner
from gateway.bodies.json_scan import MAX_DECODED, scan_json, spliced, whole_scan, with_model
from gateway.bodies.memory_budget import Allocation
from gateway.bodies.spool import PIECE, Spool, Upload, too_large
from gateway.endpoints import Endpoint
from gateway.http1.multipart import FormScanner, boundary_of, model_part
from gateway.routing import RoutingRequest


class Body(Protocol):
    """The body of a request to relay."""

    def add(self, data: bytes) -> None:
        """Add the next piece. Raises ApiError if the body is too large or malformed, or if there is no space for it."""

    def routing_request(self) -> RoutingRequest:
        """Return the routing properties of the complete body. Raises InvalidRequest if it is malformed."""

    def pieces(self, model: str | None) -> tuple[int, bytes, Iterator[bytes] | None]:
        """Return the content length, the first chunk, and an iterator over the rest.

        The model's name is replaced by `model`; None leaves it unchanged. Raises InvalidRequest if that fails.
        """

    def close(self) -> None:
        """Free memory, file and quota."""


class JsonBody:
    """A JSON body, in memory. One over MAX_DECODED is scanned as it arrives, and sent in pieces."""

    __slots__ = ("_buffer", "_endpoint", "_limit", "_memory", "_request", "_scanner", "_session", "_size", "data")

    def __init__(self, endpoint: Endpoint, limit: int, session: bytes = b"", memory: Allocation | None = None) -> None:
        """`session` is the key of the conversation from the request's headers.

        The body's size counts against `memory`; None means that it does not count.
        """
        self._endpoint = endpoint
        self._session = session
        self._limit = limit
        self._memory = memory
        # The pieces, if there are several: it takes their length only, and returns them without a copy.
        self._buffer: io.BytesIO | None = None
        self._size = 0
        # All of it, once `routing_request` was called.
        self.data = b""
        self._scanner: MemberScanner | None = None
        self._request: RoutingRequest | None = None

    @classmethod
    def from_bytes(
        cls,
        endpoint: Endpoint,
        data: bytes,
        session: bytes,
        request: RoutingRequest | None = None,
        memory: Allocation | None = None,
    ) -> "JsonBody":
        """Create a complete body; `request` is its scan, if done, and `memory` has counted it, if it counts."""
        body = cls(endpoint, len(data), session, memory)
        body.data = data
        body._size = len(data)
        body._request = request
        return body

    def add(self, data: bytes) -> None:
        """Add the next piece.

        Raises PayloadTooLarge, Busy if there is no memory for it, InvalidRequest if it is not JSON.
        """
        size = self._size + len(data)
        if size > self._limit:
            raise too_large(self._limit, "MAX_BODY_MB")
        if self._memory is not None:
            self._memory.grow(len(data))
        if not self._size:
            self.data = data
        else:
            if self._buffer is None:
                self._buffer = io.BytesIO()
                self._buffer.write(self.data)
                self.data = b""
            self._buffer.write(data)
        self._size = size
        if self._buffer is not None and size > MAX_DECODED:
            scanner = self._scanner = self._scanner or MemberScanner()
            if size - scanner.scanned >= MAX_CHUNK:
                scanner.scan(self._buffer.getbuffer())

    def routing_request(self) -> RoutingRequest:
        """Return the routing properties. Raises InvalidRequest if the body is not a JSON object."""
        if self._buffer is not None:
            self.data = self._buffer.getvalue()
            self._buffer = None
        if self._request is None:
            if self._scanner is not None:
                self._scanner.finish(self.data)
            self._request = scan_json(self.data, self._endpoint, self._session, self._scanner)
        return self._request

    def pieces(self, model: str | None) -> tuple[int, bytes, Iterator[bytes] | None]:
        """Return the body: whole if it is short, else in pieces, so that the backend's pace bounds the write buffer."""
        if self._size <= PIECE:
            data = self.data if model is None else with_model(self.data, model)
            return len(data), data, None
        if model is None:
            parts: tuple[bytes | memoryview, ...] = (self.data,)
        else:
            self._scanner = self._scanner or whole_scan(self.data)
            parts = spliced(self.data, self._scanner, model)
        return sum(map(len, parts)), b"", _in_pieces(parts)

    def with_data(self, data: bytes) -> "JsonBody":
        """Return another body for the same route and conversation."""
        return JsonBody.from_bytes(self._endpoint, data, self._session)

    def close(self) -> None:
        """Free the memory."""
        self.data = b""
        self._buffer = self._scanner = None
        if self._memory is not None:
            self._memory.shrink(self._size)
            self._size = 0


def _in_pieces(parts: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), PIECE):
            yield bytes(view[start : start + PIECE])


class FormBody(Upload):
    """A multipart form."""

    def __init__(self, endpoint: Endpoint, content_type: bytes, limit: int, spool: Spool, memory: Allocation) -> None:
        """Raises InvalidRequest if `content_type` is not that of a form."""
        self._endpoint = endpoint
        self._scanner = FormScanner(boundary_of(content_type))
        super().__init__(limit, spool, memory)

    def add(self, data: bytes) -> None:
        """Add the next piece. Raises PayloadTooLarge, SpoolFull or InvalidRequest."""
        super().add(data)
        self._scanner.feed(data)

    def routing_request(self) -> RoutingRequest:
        """Return the routing properties. Raises InvalidRequest if the form is truncated or empty."""
        self._scanner.finish()
        return RoutingRequest(self._endpoint, self._scanner.model, stream=self._scanner.stream, size=self.size)

    def pieces(self, model: str | None) -> tuple[int, bytes, Iterator[bytes]]:
        """Return the form, with the model's name replaced or a part with it put in front."""
        size = self.size
        if model is None:
            return size, b"", self.read(0, size)
        span = self._scanner.span
        if span is None:
            part = model_part(self._scanner.boundary, model)
            return size + len(part), b"", self._spliced(0, part, 0)
        name = model.encode()
        return size - (span[1] - span[0]) + len(name), b"", self._spliced(span[0], name, span[1])

    def _spliced(self, before: int, inserted: bytes, after: int) -> Iterator[bytes]:
        yield from self.read(0, before)
        yield inserted
        yield from self.read(after, self.size)
