"""The place of the `model` field in a multipart form, found while the form streams by, in constant memory. No I/O.

Only part headers and the values of `model` and `stream` are read. Formats: RFC 7578 and RFC 2046, 5.1.
"""

import re

from kit.errors import InvalidRequest

# The number of parts, the default of Starlette for fields and for files; each part costs a few microseconds.
MAX_PARTS = 1000
# Limits on the headers of a part, those of all parts and the value of a field that is read, in bytes.
MAX_PART_HEAD = 8 * 1024
MAX_HEADS = 128 * 1024
MAX_VALUE = 512
# RFC 2046: a boundary has 1 to 70 of these characters.
_BOUNDARY = re.compile(rb"""(?i);\s*boundary=(?:"([0-9a-z'()+_,./:=? -]{1,70})"|([0-9a-z'+_./-]{1,70}))\s*(?:;|\Z)""")
# A parameter of Content-Disposition, or a quoted string that is none. A string that does not end is the rest: no byte
# is read twice.
_STRING = rb""""(?:[^"\\]|\\.?)*+(?:"|\Z)"""
_PARAMETER = re.compile(rb"""(?is);\s*+([!#$%%&'*+.^_`|~0-9a-z-]++)\s*+=\s*+(%b|[^";\s]*+)|%b""" % (_STRING, _STRING))
_READ_FIELDS = frozenset({b"model", b"stream"})


def boundary_of(content_type: bytes) -> bytes:
    """Return the boundary of a multipart/form-data content type. Raises InvalidRequest if there is none."""
    match = _BOUNDARY.search(content_type) if content_type.lower().startswith(b"multipart/form-data") else None
    if match is None:
        raise InvalidRequest("This route accepts a form: Content-Type multipart/form-data with a boundary.")
    return match[1] or match[2]


class FormScanner:
    """Scans a form piece by piece. `model` and `span` are final once `finish` has returned."""

    def __init__(self, boundary: bytes) -> None:
        self.boundary = boundary
        self.model: str | None = None
        # Offsets of the model's value in the form: its first byte and the one after its last.
        self.span: tuple[int, int] | None = None
        self.stream = False
        self._delimiter = b"\r\n--" + boundary
        # The first delimiter needs no line end before it: one is put in front, and the offset starts two bytes early.
        self._buffer = b"\r\n"
        self._offset = -2
        # Where in the buffer the unread bytes begin.
        self._next = 0
        # Where in the buffer the search for the end of a head goes on.
        self._searched = 0
        self._in_head = False
        self._field: bytes | None = None
        self._value = b""
        self._value_start = 0
        self._is_complete = False
        self._parts = 0
        self._heads = 0

    def feed(self, data: bytes) -> None:
        """Scan the next piece. Raises InvalidRequest if it is not part of a form."""
        if self._is_complete:
            return
        self._searched = len(self._buffer) - 3
        self._buffer += data
        while not self._is_complete and (self._read_head() if self._in_head else self._read_content()):
            pass
        self._offset += self._next
        self._buffer = self._buffer[self._next :]
        self._next = 0

    def finish(self) -> None:
        """End the form. Raises InvalidRequest if it is incomplete or empty."""
        if not self._is_complete:
            raise InvalidRequest("The form is truncated: its closing boundary is missing.")
        if not self._parts:
            raise InvalidRequest("The form is empty.")

    def _read_content(self) -> bool:
        """Skip to the end of the current part; return False if more data is needed."""
        end = self._buffer.find(self._delimiter, self._next)
        if end < 0:
            # The last bytes may be the beginning of a delimiter.
            end = len(self._buffer) - len(self._delimiter) + 1
            if end > self._next:
                self._add_value(self._buffer[self._next : end])
                self._next = end
            return False
        after = end + len(self._delimiter)
        if len(self._buffer) < after + 2:
            return False
        line_end = self._buffer[after : after + 2]
        if line_end not in (b"\r\n", b"--"):
            raise InvalidRequest("The form's boundary is not followed by a line end.")
        self._add_value(self._buffer[self._next : end])
        self._end_part(self._offset + end)
        self._is_complete = line_end == b"--"
        # The line end is kept: in front of the part's headers it makes an empty head end like any other.
        self._next = after
        self._in_head = not self._is_complete
        return True

    def _read_head(self) -> bool:
        """Read a part's headers; return False if more data is needed."""
        start = max(self._next, self._searched)
        end = self._buffer.find(b"\r\n\r\n", start, self._next + MAX_PART_HEAD + 4)
        if end < 0:
            if len(self._buffer) - self._next > MAX_PART_HEAD:
                raise InvalidRequest("The headers of a part of the form are too large.")
            return False
        self._parts += 1
        self._heads += end - self._next
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")
        if self._heads > MAX_HEADS:
            raise InvalidRequest(f"The headers of the form's parts are larger than {MAX_HEADS // 1024} KB.")
        name = _part_name(self._buffer[self._next + 2 : end + 2])
        self._next = end + 4
        self._in_head = False
        if name in _READ_FIELDS:
            self._field = name
            self._value = b""
            self._value_start = self._offset + self._next
        return True

    def _add_value(self, piece: bytes) -> None:
        if self._field is None:
            return
        self._value += piece
        if len(self._value) > MAX_VALUE:
            raise InvalidRequest(f"The form's {self._field.decode()} is too long.", param=self._field.decode())

    def _end_part(self, end: int) -> None:
        field, self._field = self._field, None
        if field == b"model":
            if self.span is not None:
                raise InvalidRequest("The form has more than one field named model.", param="model")
            self.span = (self._value_start, end)
            try:
                self.model = self._value.decode().strip() or None
            except UnicodeDecodeError as error:
                raise InvalidRequest("The form's model is not UTF-8.", param="model") from error
        elif field == b"stream":
            self.stream = self._value.strip().lower() in (b"true", b"1", b"on", b"yes")


def model_part(boundary: bytes, model: str) -> bytes:
    """Return a part with the field `model`, to put in front of a form that has none."""
    return b'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n' % (boundary, model.encode())


def _part_name(head: bytes) -> bytes | None:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            for parameter, text in _PARAMETER.findall(value):
                if parameter.lower() == b"name":
                    return bytes(text).strip(b'"')
    return None
