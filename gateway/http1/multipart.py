"""Where the `model` stands in a multipart form, found while the form passes by, in constant memory. No I/O.

Only part headers and the values of `model` and `stream` are looked at; everything else is skipped. Format: RFC 7578 and
RFC 2046, 5.1.
"""

import re

from kit.errors import InvalidRequest

MAX_PART_HEAD = 8 * 1024
MAX_VALUE = 512
# RFC 2046: a boundary has 1 to 70 of these characters.
_BOUNDARY = re.compile(rb"""(?i);\s*boundary=(?:"([0-9a-z'()+_,./:=? -]{1,70})"|([0-9a-z'+_./-]{1,70}))\s*(?:;|\Z)""")
_PARAMETER = re.compile(rb"""(?i);\s*([!#$%&'*+.^_`|~0-9a-z-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^";\s]*)""")
_WATCHED = frozenset({b"model", b"stream"})


def boundary_of(content_type: bytes) -> bytes:
    """The boundary of a multipart/form-data content type. Raises InvalidRequest where there is none."""
    match = _BOUNDARY.search(content_type) if content_type.lower().startswith(b"multipart/form-data") else None
    if match is None:
        raise InvalidRequest("This route takes a form: Content-Type multipart/form-data with a boundary.")
    return match[1] or match[2]


class FormScanner:
    """Reads a form piece by piece. `model` and its place are known when `finish` returns at the latest."""

    def __init__(self, boundary: bytes) -> None:
        self.boundary = boundary
        self.model: str | None = None
        # Where the model's value stands in the form: first byte and the one after the last.
        self.span: tuple[int, int] | None = None
        self.stream = False
        self._delimiter = b"\r\n--" + boundary
        # The first delimiter has no line end before it; one is made up, and the offset starts two bytes early.
        self._buffer = b"\r\n"
        self._offset = -2
        self._in_head = False
        self._watching: bytes | None = None
        self._value = b""
        self._value_start = 0
        self._done = False
        self._any_part = False

    def feed(self, data: bytes) -> None:
        """Take the next piece. Raises InvalidRequest when this is no form."""
        if self._done:
            return
        self._buffer = self._buffer + data if self._buffer else data
        while not self._done and (self._read_head() if self._in_head else self._read_content()):
            pass

    def finish(self) -> None:
        """The form has ended. Raises InvalidRequest when it is not whole."""
        if not self._done:
            raise InvalidRequest("The form is cut off: its closing boundary is missing.")
        if not self._any_part:
            raise InvalidRequest("The form is empty.")

    def _skip(self, count: int) -> None:
        self._buffer = self._buffer[count:]
        self._offset += count

    def _read_content(self) -> bool:
        """Skip to the end of the present part. False: more data is needed."""
        end = self._buffer.find(self._delimiter)
        if end < 0:
            # A delimiter may have begun in the last bytes.
            passed = len(self._buffer) - len(self._delimiter) + 1
            if passed > 0:
                self._watch(self._buffer[:passed])
                self._skip(passed)
            return False
        after = end + len(self._delimiter)
        if len(self._buffer) < after + 2:
            return False
        follows = self._buffer[after : after + 2]
        if follows not in (b"\r\n", b"--"):
            raise InvalidRequest("The form's boundary is not followed by a line end.")
        self._watch(self._buffer[:end])
        self._end_part(self._offset + end)
        self._done = follows == b"--"
        # The line end stays: in front of the part's headers it lets an empty head be seen.
        self._skip(after)
        self._in_head = not self._done
        return True

    def _read_head(self) -> bool:
        """Read a part's headers. False: more data is needed."""
        end = self._buffer.find(b"\r\n\r\n")
        if end > MAX_PART_HEAD or (end < 0 and len(self._buffer) > MAX_PART_HEAD):
            raise InvalidRequest("The headers of a part of the form are too large.")
        if end < 0:
            return False
        self._any_part = True
        name = _part_name(self._buffer[2 : end + 2])
        self._skip(end + 4)
        self._in_head = False
        if name in _WATCHED:
            self._watching = name
            self._value = b""
            self._value_start = self._offset
        return True

    def _watch(self, piece: bytes) -> None:
        if self._watching is None:
            return
        self._value += piece
        if len(self._value) > MAX_VALUE:
            raise InvalidRequest(f"The form's {self._watching.decode()} is too long.", param=self._watching.decode())

    def _end_part(self, end: int) -> None:
        name, self._watching = self._watching, None
        if name == b"model":
            if self.span is not None:
                raise InvalidRequest("The form names a model more than once.", param="model")
            self.span = (self._value_start, end)
            try:
                self.model = self._value.decode().strip() or None
            except UnicodeDecodeError as error:
                raise InvalidRequest("The form's model is not UTF-8.", param="model") from error
        elif name == b"stream":
            self.stream = self._value.strip().lower() in (b"true", b"1", b"on", b"yes")


def model_part(boundary: bytes, model: str) -> bytes:
    """A whole part that names the model, to stand in front of a form that has none."""
    return b'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n' % (boundary, model.encode())


def _part_name(head: bytes) -> bytes | None:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            for parameter, text in _PARAMETER.findall(value):
                if parameter.lower() == b"name":
                    return bytes(text).strip(b'"')
    return None
