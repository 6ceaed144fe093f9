"""Stop strings, in one chunk and split over chunks."""

import itertools

import pytest

from services.llm.transformers.stop_strings import StopStrings

TEXT = "abcababcabd"


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    filter_ = StopStrings(stops)
    out = "".join(filter_.feed(piece) for piece in pieces)
    return out + filter_.flush(), filter_.stopped


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
def test_text_ends_before_the_first_stop_string_for_any_chunking(
    stops: list[str], expected: str, stopped: bool
) -> None:
    for cuts in itertools.combinations(range(1, len(TEXT)), 2):
        pieces = [TEXT[: cuts[0]], TEXT[cuts[0] : cuts[1]], TEXT[cuts[1] :]]
        assert run(stops, pieces) == (expected, stopped)
    assert run(stops, list(TEXT)) == (expected, stopped)


def test_only_a_possible_stop_string_is_held_back() -> None:
    filter_ = StopStrings(["STOP"])
    assert filter_.feed("go S") == "go "
    assert filter_.feed("o") == "So"
    assert filter_.feed(" now") == " now"


def test_nothing_passes_after_a_stop_string() -> None:
    filter_ = StopStrings(["x"])
    assert filter_.feed("axb") == "a"
    assert filter_.feed("more") == ""
    assert filter_.flush() == ""
