"""The places of the top-level members of a large JSON object, found while it arrives. No I/O.

A decoder runs to its end in one step, which blocks the event loop for as long as the client likes. This scanner is
called for each piece: its work is linear in the size of the piece for every shape of JSON, its memory constant.
Values are skipped in chunks with operations of `bytes` that run in C. Brackets are counted, not matched, and values are
not checked: the backend decodes the body, and rejects it if it is not JSON. In valid JSON all places are exact.
"""

import re
from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from kit.errors import InvalidRequest

if TYPE_CHECKING:
    from typing_extensions import Buffer

# Limits: top-level members, and the bytes of a member's name with the white space after it.
MAX_MEMBERS = 1000
MAX_NAME = 512
# Sizes of the chunks in which a value is skipped, in bytes: doubled as long as the value does not end in the chunk.
MIN_CHUNK = 128
MAX_CHUNK = 64 * 1024
# Passes that remove the innermost brackets before the rest is counted run by run.
_MAX_PASSES = 24

# Parts with an image in chat completions, responses and messages, nested ones included (a tool's result). A quote
# inside a string has a backslash before it, so that only a member of the name `type` matches.
IMAGE_PART = re.compile(rb'(?<!\\)"type"[ \t\r\n]{0,8}:[ \t\r\n]{0,8}"(?:image_url|input_image|image)"')
# No match is longer.
_MAX_IMAGE_PART = 64
_MEMBERS_WITH_IMAGES = frozenset({"messages", "input"})

_SPACE = re.compile(rb"[ \t\r\n]*+")
_NAME = re.compile(rb'"((?:[^"\\]|\\.)*+)"[ \t\r\n]*+:', re.DOTALL)
_SCALAR = re.compile(rb'[^\s,:"\[\]{}]*+')
_RUNS = re.compile(rb"\{+|\}+")
_QUOTE, _BACKSLASH, _COMMA = b'"\\,'
_OPENING, _CLOSING = b"[{", b"]}"
# Both kinds of brackets are counted as one.
_AS_BRACES = bytes.maketrans(b"[]", b"{}")
_NOT_BRACKETS = bytes(set(range(256)) - set(_OPENING + _CLOSING))


class _State(Enum):
    """What the next byte that is not white space belongs to."""

    OBJECT = "the opening brace"
    FIRST_NAME = "a name or the closing brace"
    NAME = "a name"
    VALUE = "the beginning of a value"
    SCALAR = "a number or a literal"
    NESTED = "a string, a list or an object"
    DELIMITER = "a comma or the closing brace"
    END = "nothing"


_OBJECT, _FIRST_NAME, _IN_NAME, _VALUE, _IN_SCALAR, _NESTED, _DELIMITER, _END = _State


class MemberScanner:
    """Scans one object; `scan` gets the same body each time, longer than before."""

    __slots__ = ("_at", "_depth", "_escaped", "_in_string", "_members", "_name", "_start", "_state", "images", "spans")

    def __init__(self) -> None:
        # The first and the last offset of each member's value, the last one of those with the same name.
        self.spans: dict[str, tuple[int, int]] = {}
        # Whether `messages` or `input` have a part with an image.
        self.images = False
        self._state = _OBJECT
        self._at = 0
        self._members = 0
        # The present member: its name, where its value starts, and in it the depth of brackets and strings.
        self._name = ""
        self._start = self._depth = 0
        self._in_string = False
        # The byte before was a backslash that is not escaped itself.
        self._escaped = False

    @property
    def scanned(self) -> int:
        """How much of the body was scanned, in bytes."""
        return self._at

    def scan(self, body: "Buffer") -> None:
        """Scan what has arrived. Raises InvalidRequest if it is not an object, or has too many members."""
        with memoryview(body) as view:
            size = len(view)
            while True:
                if self._state is not _NESTED:
                    self._at = _end(_SPACE, view, self._at)
                if self._at >= size or not self._step(view, size):
                    return

    def finish(self, body: "Buffer") -> None:
        """Scan the rest of the complete body. Raises InvalidRequest."""
        self.scan(body)
        if self._state is not _END:
            raise self._invalid()

    def _invalid(self) -> InvalidRequest:
        return InvalidRequest(f"The body is not JSON: expected {self._state.value} at byte {self._at}.")

    def _step(self, body: memoryview, size: int) -> bool:
        """Scan one part of a member; return False if more data is needed."""
        at, state, byte = self._at, self._state, body[self._at]
        if state is _NESTED:
            return self._skip(body, size)
        if state is _IN_SCALAR:
            self._at = _end(_SCALAR, body, at)
            if self._at < size:
                self._end_value()
            return self._at < size
        if state is _VALUE:
            self._start = at
            self._in_string, self._depth = byte == _QUOTE, int(byte in _OPENING)
            is_nested = self._in_string or self._depth > 0
            if not is_nested and _end(_SCALAR, body, at, at + 1) == at:
                raise self._invalid()
            self._state = _NESTED if is_nested else _IN_SCALAR
            self._at += is_nested
        elif state is _IN_NAME or (state is _FIRST_NAME and byte == _QUOTE):
            return self._read_name(body, size)
        elif state is _OBJECT and byte == _OPENING[1]:
            self._state = _FIRST_NAME
            self._at += 1
        elif state is _DELIMITER and byte == _COMMA:
            self._state = _IN_NAME
            self._at += 1
        elif state in (_FIRST_NAME, _DELIMITER) and byte == _CLOSING[1]:
            self._state = _END
            self._at += 1
        else:
            raise self._invalid()
        return True

    def _read_name(self, body: memoryview, size: int) -> bool:
        match = _NAME.match(body, self._at, self._at + MAX_NAME)
        if match is None:
            if body[self._at] != _QUOTE or size - self._at >= MAX_NAME:
                raise self._invalid()
            return False
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise InvalidRequest(f"The body has more than {MAX_MEMBERS} members.")
        try:
            self._name = msgspec.json.decode(b'"%b"' % match[1], type=str)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._invalid() from error
        self._at = match.end()
        self._state = _VALUE
        return True

    def _end_value(self) -> None:
        self.spans[self._name] = (self._start, self._at)
        self._state = _DELIMITER

    def _skip(self, body: memoryview, size: int) -> bool:
        """Skip to the end of a string, list or object; return False if more data is needed."""
        step = MIN_CHUNK
        while self._at < size:
            chunk = bytes(body[self._at : self._at + step])
            if not self._skip_chunk(chunk):
                if len(chunk) > MIN_CHUNK:
                    step = len(chunk) // 2
                    continue
                self._at += self._length_of_rest(chunk)
                self._find_images(body, self._at - len(chunk))
                self._end_value()
                return True
            self._at += len(chunk)
            self._find_images(body, self._at - len(chunk))
            step = min(2 * step, MAX_CHUNK)
        return False

    def _skip_chunk(self, chunk: bytes) -> bool:
        """Update the depth by a whole chunk; return False and change nothing if the value ends in it."""
        text = chunk
        if self._escaped and text[0] in b'"\\':
            text = text[1:]
        escaped = False
        if b"\\" in text:
            escaped = (len(text) - len(text.rstrip(b"\\"))) % 2 == 1
            text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
        pieces = text.split(b'"')
        if self._depth == 0:
            if len(pieces) > 1:
                return False
        else:
            brackets = b"".join(pieces[self._in_string :: 2]).translate(_AS_BRACES, _NOT_BRACKETS)
            lowest, change = _depths(brackets)
            if self._depth + lowest <= 0:
                return False
            self._depth += change
        self._in_string ^= len(pieces) % 2 == 0
        self._escaped = escaped
        return True

    def _length_of_rest(self, chunk: bytes) -> int:
        """Return how much of the value is in the chunk in which it ends, byte by byte."""
        depth, in_string, escaped = self._depth, self._in_string, self._escaped
        self._escaped = False
        for at, byte in enumerate(chunk, 1):
            if byte == _BACKSLASH:
                escaped = not escaped
                continue
            if byte == _QUOTE:
                in_string ^= not escaped
            elif not in_string and byte in _OPENING:
                depth += 1
            elif not in_string and byte in _CLOSING:
                depth -= 1
            escaped = False
            if depth == 0 and not in_string:
                return at
        raise AssertionError("the value does not end in this chunk")

    def _find_images(self, body: memoryview, start: int) -> None:
        """Look for images in the bytes of the present member from `start` on."""
        if not self.images and self._name in _MEMBERS_WITH_IMAGES:
            data = bytes(body[max(self._start, start - _MAX_IMAGE_PART) : self._at])
            # From the second byte on: the first may have a backslash before it.
            self.images = b"image" in data and IMAGE_PART.search(data, 1) is not None


def _end(pattern: re.Pattern[bytes], body: memoryview, *span: int) -> int:
    """Return the end of a match that may be empty."""
    match = pattern.match(body, *span)
    assert match is not None
    return match.end()


def _depths(brackets: bytes) -> tuple[int, int]:
    """Return the lowest depth that a row of braces reaches and its last one, relative to its first.

    Each pass removes the innermost pairs. What remains after _MAX_PASSES has few changes of direction, because each
    stands for as many pairs that were removed: these are counted in Python.
    """
    for _ in range(_MAX_PASSES):
        shorter = brackets.replace(b"{}", b"")
        if len(shorter) == len(brackets):
            closing = brackets.count(b"}")
            return -closing, len(brackets) - 2 * closing
        brackets = shorter
    depth = lowest = 0
    for run in _RUNS.findall(brackets):
        depth += len(run) if run[0] == _OPENING[1] else -len(run)
        if depth < lowest:
            lowest = depth
    return lowest, depth
