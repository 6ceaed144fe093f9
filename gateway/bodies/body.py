"""The body of a request on its way: JSON in memory, uploads spooled.

A body is kept until the first byte of the answer, so that it can be sent again.
"""

from collections.abc import Iterator
from typing import Protocol

from gateway.bodies.json_scan import scan_json, with_model
from gateway.bodies.memory_budget import BodyMemory
from gateway.bodies.spool import Spool, Upload, too_large
from gateway.endpoints import Endpoint
from gateway.http1.multipart import FormScanner, boundary_of, model_part
from gateway.routing import RoutingRequest


class Body(Protocol):
    """What an exchange needs of a body."""

    def add(self, data: bytes) -> None:
        """Take the next piece. Raises ApiError when it is too large, malformed or finds no room."""

    def routing_request(self) -> RoutingRequest:
        """What the whole body asks for. Raises InvalidRequest when it is malformed."""

    def pieces(self, model: str | None) -> tuple[int, bytes, Iterator[bytes] | None]:
        """The length, what to send first and what then, with `model` put in as the model's name unless it is None.

        Raises InvalidRequest for a body into which no name can be put.
        """

    def close(self) -> None:
        """Free what the body holds."""


class JsonBody:
    """A JSON body, in memory."""

    __slots__ = ("_data", "_endpoint", "_limit", "_memory", "_pieces", "_request", "_session", "_size")

    def __init__(self, endpoint: Endpoint, limit: int, session: bytes = b"", memory: BodyMemory | None = None) -> None:
        """`session` is what the request's head says of the conversation that it belongs to.

        What is added is taken from `memory`; None counts nothing.
        """
        self._endpoint = endpoint
        self._session = session
        self._limit = limit
        self._memory = memory
        self._pieces: list[bytes] = []
        self._size = 0
        self._data = b""
        self._request: RoutingRequest | None = None

    @classmethod
    def whole(
        cls, endpoint: Endpoint, data: bytes, session: bytes, request: RoutingRequest | None = None
    ) -> "JsonBody":
        """Return a body that arrived in one read, within its limit; `request` is its scan if that was done."""
        body = cls(endpoint, len(data), session)
        body._data = data
        body._request = request
        return body

    def add(self, data: bytes) -> None:
        """Take the next piece. Raises PayloadTooLarge, and Busy where all bodies together are too large."""
        size = self._size + len(data)
        if size > self._limit:
            raise too_large(self._limit, "MAX_BODY_MB")
        if self._memory is not None:
            self._memory.take(len(data))
        self._size = size
        self._pieces.append(data)

    def routing_request(self) -> RoutingRequest:
        """Scan the complete body, unless that was done. Raises InvalidRequest if it is not a JSON object."""
        pieces = self._pieces
        if pieces:
            self._data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._pieces = []
        if self._request is None:
            self._request = scan_json(self._data, self._endpoint, self._session)
        return self._request

    def pieces(self, model: str | None) -> tuple[int, bytes, None]:
        """The body as one piece."""
        data = self._data if model is None else with_model(self._data, model)
        return len(data), data, None

    @property
    def data(self) -> bytes:
        """All of it, once `routing_request` was asked."""
        return self._data

    def replaced(self, data: bytes) -> "JsonBody":
        """Another body for the same route and conversation."""
        body = JsonBody(self._endpoint, len(data), self._session)
        body.add(data)
        return body

    def close(self) -> None:
        """Free the memory."""
        self._data = b""
        self._pieces = []
        if self._memory is not None:
            self._memory.give_back(self._size)
            self._size = 0


class FormBody:
    """A multipart form."""

    def __init__(self, endpoint: Endpoint, content_type: bytes, limit: int, spool: Spool) -> None:
        """Raises InvalidRequest when `content_type` is not that of a form."""
        self._endpoint = endpoint
        self._scanner = FormScanner(boundary_of(content_type))
        self._upload = Upload(limit, spool)

    def add(self, data: bytes) -> None:
        """Take the next piece. Raises PayloadTooLarge, SpoolFull or InvalidRequest."""
        self._upload.count(data)
        self._scanner.feed(data)
        self._upload.keep(data)

    def routing_request(self) -> RoutingRequest:
        """What the form asks for. Raises InvalidRequest when it is cut off or empty."""
        self._scanner.finish()
        return RoutingRequest(self._endpoint, self._scanner.model, stream=self._scanner.stream, size=self._upload.size)

    def pieces(self, model: str | None) -> tuple[int, bytes, Iterator[bytes]]:
        """The form, with the model's name replaced or put in front."""
        size = self._upload.size
        if model is None:
            return size, b"", self._upload.read(0, size)
        span = self._scanner.span
        if span is None:
            part = model_part(self._scanner.boundary, model)
            return size + len(part), b"", self._with(0, part, 0)
        name = model.encode()
        return size - (span[1] - span[0]) + len(name), b"", self._with(span[0], name, span[1])

    def _with(self, before: int, put: bytes, after: int) -> Iterator[bytes]:
        yield from self._upload.read(0, before)
        yield put
        yield from self._upload.read(after, self._upload.size)

    def close(self) -> None:
        """Free memory, file and quota."""
        self._upload.close()
