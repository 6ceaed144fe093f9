"""Several files at once: in which order, how many, and how it ends."""

import threading
from collections.abc import Callable

import pytest

from kit.net.retry import Cancelled
from registry.download.file_queue import Crew
from registry.hub.client import SourceFile


def files(*paths: str) -> list[SourceFile]:
    return [SourceFile(path, 1, lfs=False, sha256=None, git_sha1="0" * 40) for path in paths]


def crew(
    bring: Callable[[SourceFile], str], *paths: str, stop: threading.Event | None = None, parallel: int, most: int
) -> Crew[str]:
    return Crew(files(*paths), bring, stop or threading.Event(), parallel=parallel, most=most)


def run(of: Crew[str]) -> list[str]:
    return of.run(lambda _done: None, every_s=10.0)


def test_one_after_the_other_in_the_order_given() -> None:
    """Where no more than one is brought at once."""
    assert run(crew(lambda file: file.path, "c", "a", "b", parallel=1, most=1)) == ["c", "a", "b"]


def test_what_is_wanted_is_the_next() -> None:
    """Once, whoever else wants it too; what is brought already, or is none of them, changes nothing."""
    brought: list[str] = []

    def bring(file: SourceFile) -> str:
        brought.append(file.path)
        if file.path == "a":
            for path in ("d", "a", "none", "d"):
                one.want(path)
        return file.path

    one = crew(bring, "a", "b", "c", "d", parallel=1, most=1)
    run(one)
    assert brought == ["a", "d", "b", "c"]


def test_what_is_wanted_waits_for_no_other() -> None:
    """It is brought beside those that are under way already."""
    begun, wanted = threading.Event(), threading.Event()

    def bring(file: SourceFile) -> str:
        if file.path == "a":
            begun.set()
            assert wanted.wait(10), "`b` was not brought while `a` was under way"
        else:
            wanted.set()
        return file.path

    one = crew(bring, "a", "b", parallel=1, most=2)

    def ask() -> None:
        begun.wait(10)
        one.want("b")

    client = threading.Thread(target=ask)
    client.start()
    assert sorted(run(one)) == ["a", "b"]
    client.join()


def test_the_first_failure_ends_the_others() -> None:
    """It is the one that is told; nothing more is begun."""
    stop, brought = threading.Event(), []

    def bring(file: SourceFile) -> str:
        brought.append(file.path)
        if file.path == "b":
            raise ValueError("this one")
        return file.path

    with pytest.raises(ValueError, match="this one"):
        run(crew(bring, "a", "b", "c", stop=stop, parallel=1, most=1))
    assert brought == ["a", "b"]
    assert stop.is_set()


def test_who_stops_it_hears_that_it_is_not_whole() -> None:
    """A list that lacks files is not given for all of them."""
    stop = threading.Event()

    def bring(file: SourceFile) -> str:
        stop.set()
        return file.path

    with pytest.raises(Cancelled):
        run(crew(bring, "a", "b", stop=stop, parallel=1, most=1))
