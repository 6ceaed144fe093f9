"""Files in parts: order, bounded memory, ends."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kit.net.part_stream import Buffers, Part, TooLong, cut, in_order
from kit.net.retry import Cancelled

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that fetch."""
    with ThreadPoolExecutor(4) as threads:
        yield threads


def fill(view: memoryview, start: int, _abandoned: threading.Event) -> None:
    view[:] = CONTENT[start : start + len(view)]


def taken(part: Part) -> bytes:
    content = bytes(part.view)
    part.release()
    return content


@pytest.mark.parametrize("start", [0, 1000, len(CONTENT) - 1, len(CONTENT)])
@pytest.mark.parametrize("part_size", [1, 999, 5000, 100_000])
@pytest.mark.parametrize("budget", [1, 2000, 1_000_000])
def test_the_bytes_from_start_on_in_order(pool: ThreadPoolExecutor, start: int, part_size: int, budget: int) -> None:
    """Whatever the size of parts and memory, a part larger than all memory included."""
    if part_size == 1:
        start = max(start, len(CONTENT) - 50)
    parts = in_order(
        fill, start, len(CONTENT), part_size, buffers=Buffers(budget), pool=pool, ahead=3, stop=threading.Event()
    )
    assert b"".join(taken(part) for part in parts) == CONTENT[start:]


def test_memory_is_bounded_over_all_files(pool: ThreadPoolExecutor) -> None:
    """Two files at once never hold more parts than the budget has room for."""
    buffers, held, most, lock = Buffers(3 * 1000), 0, 0, threading.Lock()

    def counting(view: memoryview, start: int, abandoned: threading.Event) -> None:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        fill(view, start, abandoned)

    def consume() -> bytes:
        nonlocal held
        whole = b""
        for part in in_order(counting, 0, 10_000, 1000, buffers=buffers, pool=pool, ahead=9, stop=threading.Event()):
            with lock:
                held -= 1
            whole += taken(part)
        return whole

    with ThreadPoolExecutor(2) as consumers:
        assert [future.result() for future in [consumers.submit(consume) for _ in range(2)]] == [CONTENT[:10_000]] * 2
    assert most <= 3


def test_a_failure_is_raised_and_everything_given_back(pool: ThreadPoolExecutor) -> None:
    """The part that fails ends the file; the others are told, and all memory is free again."""
    buffers, told = Buffers(4000), []

    def failing(view: memoryview, start: int, abandoned: threading.Event) -> None:
        if start == 1000:
            raise OSError("broken")
        if start > 1000:
            told.append(abandoned.wait(10))

    seen = []

    def consume() -> None:
        for part in in_order(failing, 0, 4000, 1000, buffers=buffers, pool=pool, ahead=4, stop=threading.Event()):
            seen.append(part.start)
            part.release()

    with pytest.raises(OSError, match="broken"):
        consume()
    assert seen == [0]
    assert all(told)
    whole = buffers.take(0, 4000, wait_s=0)
    assert whole is not None


def test_who_waits_for_memory_can_be_stopped(pool: ThreadPoolExecutor) -> None:
    """All memory is with another file: `stop` ends the wait."""
    buffers, stop = Buffers(1000), threading.Event()
    assert buffers.take(0, 1000, wait_s=0) is not None
    stop.set()
    with pytest.raises(Cancelled):
        next(in_order(fill, 0, 1000, 1000, buffers=buffers, pool=pool, ahead=1, stop=stop))


def test_a_stream_is_cut_into_parts() -> None:
    """Pieces of any size; too few bytes end early, too many are an error."""

    def parts(given: bytes, size: int) -> list[bytes]:
        pieces = (given[at : at + 700] for at in range(0, len(given), 700))
        return [taken(part) for part in cut(pieces, size, 1000, buffers=Buffers(1000))]

    assert parts(CONTENT[:2500], 2500) == [CONTENT[:1000], CONTENT[1000:2000], CONTENT[2000:2500]]
    assert parts(CONTENT[:1500], 2500) == [CONTENT[:1000]]
    with pytest.raises(TooLong):
        parts(CONTENT[:2501], 2500)


def test_a_file_that_has_nothing_yet_comes_before_one_that_wants_more() -> None:
    """Or the first file would take back what it gave, again and again, and the others would stand still."""
    buffers = Buffers(1000)
    first = buffers.take(0, 1000, wait_s=0.0)
    assert first is not None
    with ThreadPoolExecutor(1) as thread:
        second = thread.submit(buffers.take, 0, 1000, wait_s=10.0)
        while not buffers.is_waited_for:
            pass
        first.release()
        while buffers.is_waited_for:
            assert buffers.take(1000, 1000, wait_s=0.0) is None
        part = second.result()
    assert part is not None
    part.release()
