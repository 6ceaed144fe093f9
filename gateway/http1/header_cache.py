"""Heads that were read before: what comes again byte for byte needs no parser. Pure.

A client sends the same head with every request, and a backend with every answer, but for the digits of Content-Length.
A head counts as known only when the parser has read it, the checks have passed it, and all its bytes but those digits
are the same: then what it means is the same too, and the digits are the length.
"""

from typing import Generic, TypeVar

T = TypeVar("T")

# A head longer than this, in bytes, is not remembered, nor are more of them: together they take 2 MB at most.
MAX_HEAD = 4096
MAX_HEADS = 512
# More digits are no length that anybody takes.
_MAX_DIGITS = 12
_BEHIND_DIGITS = _MAX_DIGITS + 1
_NAMES = (b"ontent-Length: ", b"ontent-length: ")
_NAME = len(_NAMES[0])


class HeaderCache(Generic[T]):
    """What heads mean, by their bytes."""

    __slots__ = ("_after", "_after_length", "_before", "_begin", "_known", "_last")

    def __init__(self) -> None:
        self._known: dict[bytes, T] = {}
        # The head found last: what stands before the digits of its length and after them, and what it means.
        self._before = b"\0"
        self._after = b""
        self._last: T | None = None
        # Where its digits begin, and how much follows them.
        self._begin = self._after_length = 0

    def find(self, data: bytes) -> tuple[T, int, int] | None:
        """What the head means that `data` begins with, its Content-Length (-1: none) and where the body begins.

        None where the head is not whole or not known.
        """
        last = self._last
        if last is not None and data.startswith(self._before):
            begin = self._begin
            stop = data.find(b"\r", begin, begin + _BEHIND_DIGITS)
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
                value = self._known.get(data[:end])
                return None if value is None else (value, -1, end + 4)
        at += _NAME
        stop = data.find(b"\r\n", at, end)
        if stop < 0:
            stop = end
        value = self._known.get(data[:at] + data[stop:end])
        if value is None:
            return None
        digits = data[at:stop]
        if not digits.isdigit() or stop - at > _MAX_DIGITS:
            return None
        self._before, self._after, self._last = data[:at], data[stop : end + 4], value
        self._begin, self._after_length = at, end + 4 - stop
        return value, int(digits), end + 4

    def learn(self, data: bytes, value: T, length: int | None) -> None:
        """Remember that the head that `data` begins with, whole and found good by the parser, means `value`.

        `length` is its Content-Length as the parser has read it.
        """
        end = data.find(b"\r\n\r\n")
        if not 0 < end <= MAX_HEAD:
            return
        at = next((found for found in (data.find(name, 0, end) for name in _NAMES) if found >= 0), -1)
        if at < 0:
            # The name is written in a way that `find` does not look for, or there is no length.
            key = data[:end] if length is None else b""
        else:
            begin = at + _NAME
            stop = data.find(b"\r\n", begin, end)
            stop = end if stop < 0 else stop
            digits = data[begin:stop]
            # The first place that looks like the header may be a part of another one.
            is_header = data[at - 3 : at] in (b"\r\nC", b"\r\nc") and digits.isdigit() and int(digits) == length
            key = data[:begin] + data[stop:end] if is_header else b""
        if key:
            if len(self._known) >= MAX_HEADS:
                self._known.clear()
            self._known[key] = value

    def __len__(self) -> int:
        return len(self._known)
