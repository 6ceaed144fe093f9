"""What may be read of a file that is on its way, by whom."""

from pathlib import Path

import pytest

from registry.download import unproved
from registry.download.arrival import RESERVE, Arrival, Cut
from registry.store.file_store import FileStore

DIGEST = "a" * 64
SIZE = 4 * RESERVE
CONTENT = bytes(range(256)) * (SIZE // 256)


@pytest.fixture
def folder(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


def arrival(store: FileStore, *, may_stream: bool = True) -> Arrival:
    return Arrival(store, DIGEST, SIZE, may_stream=lambda _head: may_stream)


def test_of_a_bucket_there_is_the_beginning_only(folder: FileStore) -> None:
    """Kept back, and given bit by bit where there is nothing else to send."""
    one = arrival(folder)
    one.goes_on(None, 0)
    assert one.end(0, readable=False, reserve=True) == 0
    one.comes(memoryview(CONTENT)[: 3 * RESERVE])
    one.wrote(3 * RESERVE)
    assert not one.can_be_read
    assert one.open() is None
    assert one.end(0, readable=False, reserve=False) == 0
    assert one.end(0, readable=False, reserve=True) == RESERVE
    assert one.read(None, 5, 7) == CONTENT[5:7]


def test_the_last_bytes_stay_whatever_is_there(folder: FileStore, tmp_path: Path) -> None:
    """All of it is written, and its digest not known."""
    path = tmp_path / "part"
    path.write_bytes(CONTENT)
    one = arrival(folder)
    one.goes_on(path, SIZE)
    assert one.end(0, readable=True, reserve=False) == SIZE - RESERVE
    assert one.end(0, readable=True, reserve=True) == SIZE - 1
    one.is_right()
    assert one.end(0, readable=False, reserve=False) == 0
    assert one.end(0, readable=True, reserve=False) == SIZE


def test_what_must_be_looked_at_is_not_given(folder: FileStore, tmp_path: Path) -> None:
    """Nor anything while nobody can tell."""
    path = tmp_path / "part"
    path.write_bytes(CONTENT)
    one = arrival(folder, may_stream=False)
    one.goes_on(path, SIZE)
    assert one.end(0, readable=True, reserve=True) == 0
    other = arrival(folder)
    other.comes(memoryview(CONTENT)[:7])
    assert other.end(0, readable=True, reserve=True) == 0


def test_a_try_that_has_ended_without_the_file_gives_no_more(folder: FileStore) -> None:
    """Its readers hear it."""
    one = arrival(folder)
    one.comes(memoryview(CONTENT))
    one.ends("broken")
    with pytest.raises(Cut):
        one.end(0, readable=False, reserve=True)


def test_what_was_proved_is_forgotten_and_what_was_not_is_noted(folder: FileStore) -> None:
    """A try that nobody read leaves no note; beginnings of a try that broke are told from then on."""
    arrival(folder).ends("broken")
    assert not unproved.is_noted(folder, DIGEST)
    proved = arrival(folder)
    assert proved.may_be_gone_on_with()
    assert unproved.is_noted(folder, DIGEST)
    proved.ends("proved")
    assert not unproved.is_noted(folder, DIGEST)
    broken = arrival(folder)
    assert broken.may_be_gone_on_with()
    broken.ends("broken")
    second = arrival(folder)
    assert not second.may_be_gone_on_with()
    second.ends("proved")
    assert unproved.is_noted(folder, DIGEST)
    assert not second.may_be_gone_on_with()
