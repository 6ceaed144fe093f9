"""Progress of the start on a terminal and in a log."""

import pytest

from quickstart.progress_display import ProgressDisplay


def test_log_output_has_a_line_per_change_of_activity(capsys: pytest.CaptureFixture[str]) -> None:
    """Not per percent."""
    with ProgressDisplay() as display:
        display.show("embedding", 0.1, "fetching 10 %")
        display.show("embedding", 0.2, "fetching 20 %")
        display.show("embedding", 0.9, "loading")
    assert capsys.readouterr().out == "embedding: fetching 10 %\nembedding: loading\n"


def test_terminal_shows_the_detail_verbatim(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Square brackets are not markup, and the last message fits 80 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    with ProgressDisplay() as display:
        display.show("llm-primary", 0.5, "failed: [/tmp] [Errno 28]")
        display.show("transcription", 1.0, "ready: whisper on port 8004")
    out = capsys.readouterr().out
    assert "[/tmp] [Errno 28]" in out
    assert "ready: whisper on port 8004" in out
