"""`POST /transcribe/MODEL` with the recording as the body, as Chat UI's microphone sends it.

It goes on as the form of /v1/audio/transcriptions, which every backend that transcribes has, and whose answer holds the
`text` that Chat UI reads.
"""

import dataclasses
import re
import secrets
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from gateway.bodies.spool import Spool, Upload
from gateway.endpoints import TRANSCRIBE, TRANSCRIBE_PREFIX, Endpoint
from gateway.http1.headers import Head
from gateway.http1.multipart import model_part
from gateway.routing import RoutingRequest
from kit.errors import InvalidRequest

TARGET = b"/v1/audio/transcriptions"
# What a recording may be called: browsers record audio/webm, audio/ogg and audio/mp4, some as video.
_RECORDING = re.compile(rb"(?i)\A(?:(?:audio|video)/([a-z0-9.+-]{1,64})|application/octet-stream)\s*(?:;|\Z)")


class RawAudioBody:
    """A recording on its way into a form."""

    def __init__(self, endpoint: Endpoint, path: bytes, content_type: bytes, limit: int, spool: Spool) -> None:
        """Raises InvalidRequest when `path` names no model or `content_type` is not that of a recording."""
        match = _RECORDING.match(content_type)
        if match is None:
            raise InvalidRequest(
                "This route takes the recording itself, with its own Content-Type (audio/webm, audio/wav, ...). "
                f"A form goes to {TARGET.decode()}."
            )
        self._endpoint = endpoint
        self._model = _model_in(path)
        self._upload = Upload(limit, spool)
        self.boundary = b"recording-" + secrets.token_hex(16).encode()
        kind, suffix = content_type.partition(b";")[0].strip().lower(), (match[1] or b"bin").lower()
        self._before_file = (
            b'--%b\r\nContent-Disposition: form-data; name="file"; filename="recording.%b"\r\nContent-Type: %b\r\n\r\n'
            % (self.boundary, suffix.removeprefix(b"x-"), kind)
        )
        self._after_file = b"\r\n--%b--\r\n" % self.boundary

    def add(self, data: bytes) -> None:
        """Take the next piece. Raises PayloadTooLarge or SpoolFull."""
        self._upload.count(data)
        self._upload.keep(data)

    def routing_request(self) -> RoutingRequest:
        """What the path asks for. Raises InvalidRequest when there is no recording."""
        if not self._upload.size:
            raise InvalidRequest("The body is empty. Send the recording as it is.", code="invalid_audio")
        return RoutingRequest(self._endpoint, self._model)

    def pieces(self, model: str | None) -> tuple[int, bytes, Iterator[bytes]]:
        """The form: the model's name, then the recording."""
        before = model_part(self.boundary, model or self._model) + self._before_file
        return len(before) + self._upload.size + len(self._after_file), before, self._form()

    def _form(self) -> Iterator[bytes]:
        yield from self._upload.read(0, self._upload.size)
        yield self._after_file

    def close(self) -> None:
        """Free memory, file and quota."""
        self._upload.close()

    def head(self, head: Head) -> Head:
        """`head`, with which the recording came, as the backend gets it with the form."""
        was = b"content-type: %b\r\n" % head.content_type
        now = b"content-type: multipart/form-data; boundary=%b\r\n" % self.boundary
        return dataclasses.replace(head, forward=head.forward.replace(was, now, 1))


def endpoint_of(path: bytes) -> Endpoint | None:
    """The endpoint when `path` is that of this route, else None."""
    return TRANSCRIBE if path.startswith(TRANSCRIBE_PREFIX) and path != TRANSCRIBE_PREFIX else None


def _model_in(path: bytes) -> str:
    """The model that `path` names, a repository's slash left in. Raises InvalidRequest."""
    try:
        model = unquote_to_bytes(path.removeprefix(TRANSCRIBE_PREFIX)).decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest("The model in the path is not UTF-8.", param="model") from error
    # It becomes a line of a form: nothing in it may end that line.
    if not model.isprintable():
        raise InvalidRequest("The model in the path holds control characters.", param="model")
    return model
