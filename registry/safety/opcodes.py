"""Follow the opcodes of a pickle as an unpickler would, without building its objects.

The stack holds the strings that may name an import, and None for every other object. Long arguments are skipped, so a
pickle of any size is followed in bounded memory. Where unpicklers and parsers disagree about an argument (`I0x10`), it
is taken for valid: an unpickler may go on and run what follows.
"""

import pickletools
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

# The name of an import that cannot be determined.
UNKNOWN = "unknown"
MAX_PROTOCOL = 5
# Limits of one pickle: its opcodes (a minute or two), and what is kept of it, each up to 500 bytes. Models have a few
# hundred thousand.
MAX_OPCODES = 1 << 26
MAX_KEPT = 1 << 20
# The longest string that is kept, in bytes: longer ones are no names of imports.
_MAX_READ = 256
_MAX_LINE = 64 << 10
_MARK = object()
_CALLS = frozenset({"REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"})
_STRINGS = frozenset(
    {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
)
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
# Bytes of the length in front of an argument.
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
Argument = int | str | tuple[str, str] | None


@dataclass(frozen=True)
class _Opcode:
    name: str
    argument: int | None
    """Its length in bytes, or a constant of pickletools."""
    pops: int
    """Objects popped, below the mark if there is one."""
    pops_mark: bool
    pushes: tuple[object, ...]


def _opcode(op: pickletools.OpcodeInfo) -> _Opcode:
    before = [each.name for each in op.stack_before]
    pops = before.index("mark") if "mark" in before else len(before)
    pushes = tuple(_MARK if each.name == "mark" else None for each in op.stack_after)
    return _Opcode(op.name, op.arg.n if op.arg else None, pops, "mark" in before, pushes)


_OPCODES = {op.code.encode("latin-1"): _opcode(op) for op in pickletools.opcodes}


class _Invalid(Exception):
    """An unpickler fails here."""


@dataclass
class Pickle:
    """What one pickle does."""

    imports: set[tuple[str, str]] = field(default_factory=set)
    """Module and name."""
    calls: bool = False
    """Whether it may call an import."""
    opcodes: int = 0
    end: Literal["stop", "invalid", "truncated", "too long"] = "truncated"


def follow(stream: BinaryIO, size: int) -> Pickle:
    """Follow the pickle at the position of the stream, which has `size` bytes, and leave the position at its end."""
    unpickler = _Unpickler(stream, size)
    found = unpickler.found
    try:
        while unpickler.step() != "STOP":
            found.opcodes += 1
            if found.opcodes > MAX_OPCODES or unpickler.kept > MAX_KEPT:
                found.end = "too long"
                return found
        found.end = "stop"
    except _Invalid:
        found.end = "invalid"
    except EOFError:
        found.end = "truncated"
    return found


class _Unpickler:
    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.found = Pickle()
        self._stream = stream
        self._size = size
        self._stack: list[object] = []
        self._memo: dict[int, object] = {}

    @property
    def kept(self) -> int:
        """How many objects are in memory."""
        return len(self._stack) + len(self._memo) + len(self.found.imports)

    def step(self) -> str:
        """Take the next opcode and return its name. Raises _Invalid, EOFError."""
        code = self._stream.read(1)
        if not code:
            raise EOFError
        op = _OPCODES.get(code)
        if op is None:
            raise _Invalid
        argument, stack, name = self._argument(op), self._stack, op.name
        if name in _PUTS:
            key = len(self._memo) if name == "MEMOIZE" else argument
            self._memo[_number(key)] = self._top()
        elif name in _GETS:
            if _number(argument) not in self._memo:
                raise _Invalid
            stack.append(self._memo[_number(argument)])
        elif name in _STRINGS:
            stack.append(argument)
        elif name == "DUP":
            stack.append(self._top())
        elif name == "POP" and stack and stack[-1] is _MARK:
            stack.pop()
        else:
            self._import(name, argument)
            if op.pops_mark:
                self._pop_mark()
            if len(stack) < op.pops:
                raise _Invalid
            del stack[len(stack) - op.pops :]
            stack.extend(op.pushes)
            self.found.calls |= name in _CALLS and bool(self.found.imports)
        return name

    def _import(self, name: str, argument: Argument) -> None:
        imports = self.found.imports
        if isinstance(argument, tuple):
            imports.add(argument)
        elif name == "STACK_GLOBAL" and len(self._stack) >= 2:
            module, attribute = (each if isinstance(each, str) else UNKNOWN for each in self._stack[-2:])
            imports.add((module, attribute))
        elif name.startswith("EXT"):
            imports.add((UNKNOWN, "extension code"))
        elif name == "PROTO" and _number(argument) > MAX_PROTOCOL:
            raise _Invalid

    def _top(self) -> object:
        if not self._stack:
            raise _Invalid
        return self._stack[-1]

    def _pop_mark(self) -> None:
        while self._stack:
            if self._stack.pop() is _MARK:
                return
        raise _Invalid

    def _argument(self, op: _Opcode) -> Argument:
        if op.argument is None:
            return None
        if op.name in ("GLOBAL", "INST"):
            return self._import_name(), self._import_name()
        if op.argument == pickletools.UP_TO_NEWLINE:
            line = self._line()
            return None if line is None else line.decode(errors="replace").strip("'\"")
        if op.argument in _LENGTHS:
            return self._counted(self._integer(_LENGTHS[op.argument]), is_string=op.name in _STRINGS)
        return self._integer(op.argument)

    def _integer(self, length: int) -> int:
        data = self._stream.read(length)
        if len(data) < length:
            raise EOFError
        return int.from_bytes(data, "little")

    def _counted(self, length: int, *, is_string: bool) -> str | None:
        """Return a short string; skip other arguments."""
        at = self._stream.tell()
        if length > self._size - at:
            raise EOFError
        if length > _MAX_READ:
            self._stream.seek(at + length)
            return None
        data = self._stream.read(length)
        return data.decode(errors="replace") if is_string else None

    def _import_name(self) -> str:
        try:
            name = (self._line() or b"").decode()
        except UnicodeDecodeError:
            raise _Invalid from None
        if not name or not name.isprintable() or " " in name:  # no module has such a name
            raise _Invalid
        return name if len(name) <= _MAX_READ else UNKNOWN

    def _line(self) -> bytes | None:
        """Read up to a newline; None for a line that is too long for a name or number.

        As in Python, the last byte is dropped even where the file ends without a newline.
        """
        line = rest = self._stream.readline(_MAX_LINE)
        if not line:
            raise EOFError
        while rest and not rest.endswith(b"\n"):
            rest = self._stream.readline(_MAX_LINE)
        return line[:-1] if len(line) < _MAX_LINE else None


def _number(value: Argument) -> int:
    try:
        return int(value)  # type: ignore[arg-type]  # a TypeError is a number too long to be one
    except (TypeError, ValueError):
        raise _Invalid from None
