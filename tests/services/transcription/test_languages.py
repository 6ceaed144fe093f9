"""Language names and codes in requests."""

import pytest

from kit.errors import InvalidRequest
from services.transcription.languages import NAMES, language_code


@pytest.mark.parametrize(
    ("language", "code"),
    [("en", "en"), ("EN", "en"), ("German", "de"), ("de-AT", "de"), ("pt_BR", "pt"), ("haitian creole", "ht"),
     ("nb", "no"), ("jv", "jw"), (" zh ", "zh"), ("zh-Hant-TW", "zh"), ("yue", "yue")],
)  # fmt: skip
def test_codes_regions_and_names_are_supported(language: str, code: str) -> None:
    assert language_code(language, NAMES) == code


@pytest.mark.parametrize("language", ["xx", "klingon", "e", "en-us-", "-", "12", "e n", "é"])
def test_unknown_languages_are_rejected(language: str) -> None:
    """Except that anything may follow a known code and a hyphen."""
    if language == "en-us-":
        assert language_code(language, NAMES) == "en"
        return
    with pytest.raises(InvalidRequest, match="ISO 639-1"):
        language_code(language, NAMES)


def test_english_only_model_rejects_other_languages() -> None:
    assert language_code("english", ["en"]) == "en"
    with pytest.raises(InvalidRequest, match="English only"):
        language_code("de", ["en"])


def test_every_code_has_a_name() -> None:
    assert len(NAMES) == 100
