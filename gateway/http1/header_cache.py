"""A cache of parsed heads: a head that repeats byte for byte is not parsed again. Pure.

A client sends the same head with every request, and a backend with every response, except for the digits of
Content-Length. A cached head was parsed and has passed all checks. Data that equals it in all bytes but those digits
has the same meaning, and the digits are its length.
"""

from typing import Generic, TypeVar

T = TypeVar("T")

# Limits on the size of a cached head, in bytes, and on their number: together they take 2 MB at most.
MAX_HEAD = 4096
MAX_HEADS = 512
# No accepted length has more digits.
_MAX_DIGITS = 12
_AFTER_DIGITS = _MAX_DIGITS + 1
_NAMES = (b"ontent-Length: ", b"ontent-length: ")
_NAME_LENGTH = len(_NAMES[0])


class HeaderCache(Generic[T]):
    """Parsed heads by their bytes."""

    def __init__(self) -> None:
        self._heads: dict[bytes, T] = {}
        # The head found last: its bytes before and after the digits of the length, and its parsed form.
        self._before = b"\0"
        self._after = b""
        self._last: T | None = None
        # The position of the digits, and the length of what follows them.
        self._begin = self._after_length = 0

    def find(self, data: bytes) -> tuple[T, int, int] | None:
        """Return the parsed head that `data` begins with, its Content-Length (-1: none) and the position of the body.

        None if the head is incomplete or not cached.
        """
        last = self._last
        if last is not None and data.startswith(self._before):
            begin = self._begin
            stop = data.find(b"\r", begin, begin + _AFTER_DIGITS)
            if data.startswith(self._after, stop):
                digits = data[begin:stop]
                if digits.isdigit():
                    return last, int(digits), stop + self._after_length
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return None
        at = data.find(b"ontent-Length: ", 0, end)
        if at < 0:
            at = data.find(b"ontent-length: ", 0, end)
            if at < 0:
                value = self._heads.get(data[:end])
                return None if value is None else (value, -1, end + 4)
        at += _NAME_LENGTH
        stop = data.find(b"\r\n", at, end)
        if stop < 0:
            stop = end
        value = self._heads.get(data[:at] + data[stop:end])
        if value is None:
            return None
        digits = data[at:stop]
        if not digits.isdigit() or stop - at > _MAX_DIGITS:
            return None
        self._before, self._after, self._last = data[:at], data[stop : end + 4], value
        self._begin, self._after_length = at, end + 4 - stop
        return value, int(digits), end + 4

    def learn(self, data: bytes, value: T, length: int | None) -> None:
        """Cache `value` for the head that `data` begins with, which is complete and valid.

        `length` is its Content-Length according to the parser.
        """
        end = data.find(b"\r\n\r\n")
        if not 0 < end <= MAX_HEAD:
            return
        at = next((found for found in (data.find(name, 0, end) for name in _NAMES) if found >= 0), -1)
        if at < 0:
            # There is no length, or its name is spelled in a way that `find` does not search.
            key = data[:end] if length is None else b""
        else:
            begin = at + _NAME_LENGTH
            stop = data.find(b"\r\n", begin, end)
            stop = end if stop < 0 else stop
            digits = data[begin:stop]
            # The first match may be part of another header.
            is_header = data[at - 3 : at] in (b"\r\nC", b"\r\nc") and digits.isdigit() and int(digits) == length
            key = data[:begin] + data[stop:end] if is_header else b""
        if key:
            if len(self._heads) >= MAX_HEADS:
                self._heads.clear()
            self._heads[key] = value

    def __len__(self) -> int:
        return len(self._heads)
