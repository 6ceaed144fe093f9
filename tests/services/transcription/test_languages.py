"""Languages as clients write them."""

import pytest

from kit.errors import InvalidRequest
from services.transcription.languages import NAMES, code_of, name_of


@pytest.mark.parametrize(
    ("said", "code"),
    [("en", "en"), ("EN", "en"), ("German", "de"), ("de-AT", "de"), ("pt_BR", "pt"), ("haitian creole", "ht"),
     ("nb", "no"), ("jv", "jw"), (" zh ", "zh"), ("zh-Hant-TW", "zh"), ("yue", "yue")],
)  # fmt: skip
def test_known(said: str, code: str) -> None:
    """Codes, regions and English names all lead to Whisper's code."""
    assert code_of(said, NAMES) == code


@pytest.mark.parametrize("said", ["xx", "klingon", "e", "en-us-", "-", "12", "e n", "é"])
def test_unknown(said: str) -> None:
    """Others are refused with the list, except that a known code may have anything behind a hyphen."""
    if said == "en-us-":
        assert code_of(said, NAMES) == "en"
        return
    with pytest.raises(InvalidRequest, match="ISO 639-1"):
        code_of(said, NAMES)


def test_english_only() -> None:
    """An English-only model says so."""
    assert code_of("english", ["en"]) == "en"
    with pytest.raises(InvalidRequest, match="English only"):
        code_of("de", ["en"])


def test_names() -> None:
    """Every code has a name; a code that a newer model brings stays itself."""
    assert len(NAMES) == 100
    assert name_of("yue") == "cantonese"
    assert name_of("new") == "new"
