"""Stop strings, whole and in pieces."""

import itertools

import pytest

from services.llm.stop_strings import StopStrings

TEXT = "abcababcabd"


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    cut = StopStrings(stops)
    out = "".join(cut.feed(piece) for piece in pieces)
    return out + cut.flush(), cut.stopped


@pytest.mark.parametrize(
    ("stops", "expected", "stopped"),
    [
        ([], TEXT, False),
        (["z"], TEXT, False),
        (["abd"], "abcababc", True),
        (["c"], "ab", True),
        (["abcabd", "bca"], "a", True),
        (["abdx"], TEXT, False),
    ],
)
def test_text_ends_before_the_first_stop_string_however_it_is_cut(
    stops: list[str], expected: str, stopped: bool
) -> None:
    for cuts in itertools.combinations(range(1, len(TEXT)), 2):
        pieces = [TEXT[: cuts[0]], TEXT[cuts[0] : cuts[1]], TEXT[cuts[1] :]]
        assert run(stops, pieces) == (expected, stopped)
    assert run(stops, list(TEXT)) == (expected, stopped)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    cut = StopStrings(["STOP"])
    assert cut.feed("go S") == "go "
    assert cut.feed("o") == "So"
    assert cut.feed(" now") == " now"


def test_nothing_comes_after_a_stop_string() -> None:
    cut = StopStrings(["x"])
    assert cut.feed("axb") == "a"
    assert cut.feed("more") == ""
    assert cut.flush() == ""
