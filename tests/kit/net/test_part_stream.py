"""Files in parts: order, bounded memory, errors."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kit.net.part_stream import BufferPool, Part, TooLong, cut, parts_in_order
from kit.net.retry import Cancelled

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Fetching threads."""
    with ThreadPoolExecutor(4) as threads:
        yield threads


def fill(view: memoryview, start: int, _abandoned: threading.Event) -> None:
    view[:] = CONTENT[start : start + len(view)]


def content_of(part: Part) -> bytes:
    content = bytes(part.view)
    part.release()
    return content


@pytest.mark.parametrize("start", [0, 1000, len(CONTENT) - 1, len(CONTENT)])
@pytest.mark.parametrize("part_size", [1, 999, 5000, 100_000])
@pytest.mark.parametrize("budget", [1, 2000, 1_000_000])
def test_parts_are_yielded_in_order(pool: ThreadPoolExecutor, start: int, part_size: int, budget: int) -> None:
    """For any part size and memory budget, a part larger than the budget included."""
    if part_size == 1:
        start = max(start, len(CONTENT) - 50)
    parts = parts_in_order(
        fill, start, len(CONTENT), part_size, buffers=BufferPool(budget), pool=pool, ahead=3, stop=threading.Event()
    )
    assert b"".join(content_of(part) for part in parts) == CONTENT[start:]


def test_memory_budget_holds_over_all_files(pool: ThreadPoolExecutor) -> None:
    """Two files at once never hold more parts than fit into the budget."""
    buffers, held, most, lock = BufferPool(3 * 1000), 0, 0, threading.Lock()

    def counting(view: memoryview, start: int, abandoned: threading.Event) -> None:
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        fill(view, start, abandoned)

    def consume() -> bytes:
        nonlocal held
        whole = b""
        stop = threading.Event()
        for part in parts_in_order(counting, 0, 10_000, 1000, buffers=buffers, pool=pool, ahead=9, stop=stop):
            with lock:
                held -= 1
            whole += content_of(part)
        return whole

    with ThreadPoolExecutor(2) as consumers:
        assert [future.result() for future in [consumers.submit(consume) for _ in range(2)]] == [CONTENT[:10_000]] * 2
    assert most <= 3


def test_failure_is_raised_and_memory_released(pool: ThreadPoolExecutor) -> None:
    """A failed part ends the file; the other parts are abandoned, and all memory is free again."""
    buffers, abandonments = BufferPool(4000), []

    def failing(view: memoryview, start: int, abandoned: threading.Event) -> None:
        if start == 1000:
            raise OSError("broken")
        if start > 1000:
            abandonments.append(abandoned.wait(10))

    seen = []

    def consume() -> None:
        for part in parts_in_order(failing, 0, 4000, 1000, buffers=buffers, pool=pool, ahead=4, stop=threading.Event()):
            seen.append(part.start)
            part.release()

    with pytest.raises(OSError, match="broken"):
        consume()
    assert seen == [0]
    assert all(abandonments)
    whole = buffers.acquire(0, 4000, wait_s=0)
    assert whole is not None


def test_stop_ends_the_wait_for_memory(pool: ThreadPoolExecutor) -> None:
    """While another file holds all memory."""
    buffers, stop = BufferPool(1000), threading.Event()
    assert buffers.acquire(0, 1000, wait_s=0) is not None
    stop.set()
    with pytest.raises(Cancelled):
        next(parts_in_order(fill, 0, 1000, 1000, buffers=buffers, pool=pool, ahead=1, stop=stop))


def test_stream_is_cut_into_parts() -> None:
    """Chunks of any size; too few bytes end early, too many are an error."""

    def parts(given: bytes, size: int) -> list[bytes]:
        pieces = (given[at : at + 700] for at in range(0, len(given), 700))
        return [content_of(part) for part in cut(pieces, size, 1000, buffers=BufferPool(1000))]

    assert parts(CONTENT[:2500], 2500) == [CONTENT[:1000], CONTENT[1000:2000], CONTENT[2000:2500]]
    assert parts(CONTENT[:1500], 2500) == [CONTENT[:1000]]
    with pytest.raises(TooLong):
        parts(CONTENT[:2501], 2500)


def test_file_without_memory_has_priority() -> None:
    """Otherwise the first file could reacquire what it released again and again, and starve the others."""
    buffers = BufferPool(1000)
    first = buffers.acquire(0, 1000, wait_s=0.0)
    assert first is not None
    with ThreadPoolExecutor(1) as thread:
        second = thread.submit(buffers.acquire, 0, 1000, wait_s=10.0)
        while not buffers.has_waiters:
            pass
        first.release()
        while buffers.has_waiters:
            assert buffers.acquire(1000, 1000, wait_s=0.0) is None
        part = second.result()
    assert part is not None
    part.release()
