"""`POST /transcribe/MODEL` with the recording as the body, as sent by Chat UI's microphone.

It is forwarded as a form to /v1/audio/transcriptions, which all speech backends support and whose response has the
`text` that Chat UI reads.
"""

import dataclasses
import re
import secrets
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from gateway.bodies.memory_budget import Allocation
from gateway.bodies.spool import Spool, Upload
from gateway.endpoints import TRANSCRIBE, TRANSCRIBE_PREFIX, Endpoint
from gateway.http1.headers import Head
from gateway.http1.multipart import model_part
from gateway.routing import RoutingRequest
from kit.errors import InvalidRequest

TARGET = b"/v1/audio/transcriptions"
# Content types of recordings: browsers record audio/webm, audio/ogg and audio/mp4, some as video.
_RECORDING = re.compile(rb"(?i)\A(?:(?:audio|video)/([a-z0-9.+-]{1,64})|application/octet-stream)\s*(?:;|\Z)")


class RawAudioBody(Upload):
    """A recording that is forwarded as a form."""

    def __init__(
        self, endpoint: Endpoint, path: bytes, content_type: bytes, limit: int, spool: Spool, memory: Allocation
    ) -> None:
        """Raises InvalidRequest if the model in `path` is invalid or `content_type` is not that of a recording."""
        super().__init__(limit, spool, memory)
        match = _RECORDING.match(content_type)
        if match is None:
            raise InvalidRequest(
                "This route accepts a recording as the body, with its Content-Type (audio/webm, audio/wav, ...). "
                f"Send a form to {TARGET.decode()}."
            )
        self._endpoint = endpoint
        self._model = _model_in(path)
        self.boundary = b"recording-" + secrets.token_hex(16).encode()
        kind, suffix = content_type.partition(b";")[0].strip().lower(), (match[1] or b"bin").lower()
        self._before_file = (
            b'--%b\r\nContent-Disposition: form-data; name="file"; filename="recording.%b"\r\nContent-Type: %b\r\n\r\n'
            % (self.boundary, suffix.removeprefix(b"x-"), kind)
        )
        self._after_file = b"\r\n--%b--\r\n" % self.boundary

    def routing_request(self) -> RoutingRequest:
        """Return the routing properties. Raises InvalidRequest if the body is empty."""
        if not self.size:
            raise InvalidRequest("The body is empty. Send the recording as the body.", code="invalid_audio")
        return RoutingRequest(self._endpoint, self._model)

    def pieces(self, model: str | None) -> tuple[int, bytes, Iterator[bytes]]:
        """Return the form: the model's name, then the recording."""
        before = model_part(self.boundary, model or self._model) + self._before_file
        return len(before) + self.size + len(self._after_file), before, self._form()

    def _form(self) -> Iterator[bytes]:
        yield from self.read(0, self.size)
        yield self._after_file

    def head(self, head: Head) -> Head:
        """Return the head of the recording's request with the content type of the form."""
        original = b"content-type: %b\r\n" % head.content_type
        replacement = b"content-type: multipart/form-data; boundary=%b\r\n" % self.boundary
        return dataclasses.replace(head, forward=head.forward.replace(original, replacement, 1))


def endpoint_of(path: bytes) -> Endpoint | None:
    """Return the endpoint if `path` is that of this route, else None."""
    return TRANSCRIBE if path.startswith(TRANSCRIBE_PREFIX) and path != TRANSCRIBE_PREFIX else None


def _model_in(path: bytes) -> str:
    """Return the model in `path`, which may contain a slash. Raises InvalidRequest."""
    try:
        model = unquote_to_bytes(path.removeprefix(TRANSCRIBE_PREFIX)).decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest("The model in the path is not UTF-8.", param="model") from error
    # It becomes a line of the form, which must not contain line ends.
    if not model.isprintable():
        raise InvalidRequest("The model in the path contains control characters.", param="model")
    return model
