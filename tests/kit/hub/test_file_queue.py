"""Queue of files: order, parallelism, priority, failure, cancellation."""

import threading
from collections.abc import Callable

import pytest

from kit.hub.file_queue import FileQueue
from kit.hub.listing import RemoteFile
from kit.net.retry import Cancelled


def files(*paths: str) -> list[RemoteFile]:
    return [RemoteFile(path, 1, sha256=None, git_sha1="0" * 40) for path in paths]


def queue(
    fetch: Callable[[RemoteFile], str], *paths: str, stop: threading.Event | None = None, max_parallel: int = 1
) -> FileQueue[str]:
    return FileQueue(files(*paths), fetch, stop or threading.Event(), parallel=1, max_parallel=max_parallel)


def test_files_are_fetched_in_order() -> None:
    """With one file at a time."""
    assert queue(lambda file: file.path, "c", "a", "b").run() == ["c", "a", "b"]


def test_prioritized_file_is_next() -> None:
    """Once only; finished and unknown files are ignored."""
    fetched: list[str] = []

    def fetch(file: RemoteFile) -> str:
        fetched.append(file.path)
        if file.path == "a":
            for path in ("d", "a", "none", "d"):
                one.prioritize(path)
        return file.path

    one = queue(fetch, "a", "b", "c", "d")
    one.run()
    assert fetched == ["a", "d", "b", "c"]


def test_prioritized_file_does_not_wait_for_others() -> None:
    """It is fetched in addition to those in progress."""
    begun, prioritized = threading.Event(), threading.Event()

    def fetch(file: RemoteFile) -> str:
        if file.path == "a":
            begun.set()
            assert prioritized.wait(10), "`b` was not fetched while `a` was in progress"
        else:
            prioritized.set()
        return file.path

    def prioritize() -> None:
        assert begun.wait(10)
        one.prioritize("b")

    one = queue(fetch, "a", "b", max_parallel=2)
    client = threading.Thread(target=prioritize)
    client.start()
    assert sorted(one.run()) == ["a", "b"]
    client.join()


def test_first_failure_ends_the_queue() -> None:
    """It is the error that is raised; no other file is begun."""
    stop, fetched = threading.Event(), []

    def fetch(file: RemoteFile) -> str:
        fetched.append(file.path)
        if file.path == "b":
            raise ValueError("this one")
        return file.path

    with pytest.raises(ValueError, match="this one"):
        queue(fetch, "a", "b", "c", stop=stop).run()
    assert fetched == ["a", "b"]
    assert stop.is_set()


def test_stopped_queue_raises_cancelled() -> None:
    """An incomplete list of results is never returned."""
    stop = threading.Event()

    def fetch(file: RemoteFile) -> str:
        stop.set()
        return file.path

    with pytest.raises(Cancelled):
        queue(fetch, "a", "b", stop=stop).run()


def test_exception_that_ends_a_thread_is_raised() -> None:
    def fetch(file: RemoteFile) -> str:
        if file.path == "b":
            raise SystemExit
        return file.path

    with pytest.raises(SystemExit):
        queue(fetch, "a", "b", "c").run()
