"""What is followed of a pickle is at least what an unpickler does: compared with Python's own, on damaged pickles."""

import io
import pickle
import pickletools
import random
from collections import Counter, OrderedDict
from fractions import Fraction
from typing import Any

import pytest

from registry.safety.opcodes import follow

PICKLES = 1500
VALUES: list[Any] = [
    OrderedDict(weights=[1.0, 2.0], name="layer"),
    {"a": {1, 2}, "b": b"bytes", "c": bytearray(b"array"), "d": 1 << 70, "e": (None, True, -1, 1.5)},
    [Counter("abc"), Fraction(1, 3), "x" * 300],
    Fraction,
]
OPCODES = [op.code.encode("latin-1") for op in pickletools.opcodes]
# As text, these begin, call and import.
PIECES = [
    *OPCODES,
    b"cos\nsystem\n",
    b"(S'x'\nt",
    b"(ios\nsystem\n",
    b"\x8c\x02os\x8c\x06system\x93",
    b"I0x10\n0",
    b"p1\ng1\n",
]


class Spy(pickle._Unpickler):
    """Records imports and calls, and carries out none. In Python: the one in C allocates a memo of any size."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.imports: set[tuple[str, str]] = set()
        self.calls = 0

    def find_class(self, module: str, name: str) -> Any:
        if not (module + name).isprintable() or " " in module + name or not module or not name:
            raise ImportError(module)
        self.imports.add((module, name))
        spy = self

        class Import(dict[Any, Any]):
            def __new__(cls, *_args: object, **_named: object) -> Any:
                spy.calls += 1
                return dict.__new__(cls)

            def __init__(self, *_args: object, **_named: object) -> None:
                super().__init__()

            def __setstate__(self, _state: object) -> None:
                spy.calls += 1

        return Import

    def persistent_load(self, _pid: object) -> None:
        return None


def damaged(chance: random.Random) -> bytes:
    """A pickle of any protocol with some of its bytes changed, and pieces put in."""
    data = bytearray(pickle.dumps(chance.choice(VALUES), chance.randrange(6)))
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(data))
        if chance.random() < 0.3:
            data[at] = chance.randrange(256)
        else:
            data[at : at + chance.randrange(2)] = chance.choice(PIECES)
    arrays = [at for at, byte in enumerate(data) if byte == pickle.BYTEARRAY8[0]]
    if any(int.from_bytes(data[at + 1 : at + 9], "little") > len(data) for at in arrays):
        return damaged(chance)  # Python allocates it before it reads
    return bytes(data)


def is_plain(name: str) -> bool:
    return all(each.isalnum() or each in "._" for each in name)


@pytest.mark.parametrize("seed", range(4))
def test_nothing_that_an_unpickler_imports_or_calls_is_overlooked(seed: int) -> None:
    """X4: an import may be known by another name, if that is one that no list accepts."""
    chance, imported, called = random.Random(seed), 0, 0
    failures: set[str] = set()
    for _ in range(PICKLES):
        data = damaged(chance)
        spy = Spy(data)
        try:
            spy.load()
        except Exception as error:  # noqa: BLE001  # whatever a damaged pickle causes; what it did before counts
            failures.add(type(error).__name__)
        found = follow(io.BufferedReader(io.BytesIO(data)), len(data))
        is_unknown = any(not is_plain("".join(pair)) or "unknown" in pair for pair in found.imports)
        assert spy.imports <= found.imports or is_unknown, data
        assert found.calls or not spy.calls, data
        imported += bool(spy.imports)
        called += bool(spy.calls)
    assert min(imported, called) > PICKLES // 10
    assert len(failures) > 3


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("protocol", range(6))
def test_valid_pickle_is_followed_to_its_end(value: object, protocol: int) -> None:
    """With the same imports as picklescan's and pickletools' parsers find."""
    data = pickle.dumps(value, protocol)
    stream = io.BufferedReader(io.BytesIO(data + b"rest"))
    found = follow(stream, len(data) + 4)
    spy = Spy(data)
    spy.load()
    assert (found.end, stream.tell(), found.imports) == ("stop", len(data), spy.imports)
