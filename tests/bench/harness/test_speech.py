"""Word errors: wrong, missing and additional words."""

import pytest

from bench.harness.speech import word_errors


@pytest.mark.parametrize(
    ("heard", "errors"),
    [
        ("The cat sat on the mat.", 0),
        ("the CAT sat, on the mat!", 0),
        ("the cat sat on a mat", 1),
        ("cat sat on the mat", 1),
        ("the cat has sat on the mat", 1),
        ("a dog ran", 6),
        ("", 6),
    ],
)
def test_word_errors(heard: str, errors: int) -> None:
    assert word_errors("the cat sat on the mat", heard) == (errors, 6)
