"""The framing of a chunked body, as far as it is needed to find its end (RFC 9112, 7.1). llhttp validates it."""

import re

_SIZE = re.compile(rb"[0-9A-Fa-f]*")
# How much of an incomplete size line is kept, in bytes: llhttp rejects a size of more than 16 digits.
MAX_DIGITS = 32


class ChunkScanner:
    """Skips the chunks of one body, so that only its trailers are searched for the empty line that ends it."""

    __slots__ = ("_in_trailers", "_left", "_line")

    def __init__(self) -> None:
        # The bytes of the present chunk that are to come, its line break included.
        self._left = 0
        # The start of an incomplete size line, without leading zeros.
        self._line = b""
        self._in_trailers = False

    def skip(self, data: bytes, position: int) -> int:
        """Return where the trailers begin in `data`, from `position` on, less a line break before; else its length."""
        if self._in_trailers:
            return position
        length = len(data)
        while True:
            if self._left > length - position:
                self._left -= length - position
                return length
            position += self._left
            self._left = 0
            end = data.find(b"\n", position)
            line = self._line + data[position : length if end < 0 else end]
            if end < 0:
                self._line = line.lstrip(b"0")[:MAX_DIGITS]
                return length
            self._line = b""
            position = end + 1
            size = _SIZE.match(line)[0]  # type: ignore[index]  # it always matches
            if not int(size or b"0", 16):
                self._in_trailers = True
                return max(position - 2, 0)
            self._left = int(size, 16) + 2
