"""What the person sees while the cluster comes up."""

import pytest

from quickstart.progress_display import Board


def test_log_output_has_a_line_per_change_of_activity(capsys: pytest.CaptureFixture[str]) -> None:
    """Not one for each percent."""
    with Board() as board:
        board.show("embedding", 0.1, "fetching 10 %")
        board.show("embedding", 0.2, "fetching 20 %")
        board.show("embedding", 0.9, "loading")
    assert capsys.readouterr().out == "embedding: fetching 10 %\nembedding: loading\n"


def test_terminal_shows_the_detail_verbatim(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Square brackets are no markup, and what a service says at the end fits a terminal of 80 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    with Board() as board:
        board.show("llm-primary", 0.5, "no way: [/tmp] [Errno 28]")
        board.show("transcription", 1.0, "ready: whisper on port 8004")
    out = capsys.readouterr().out
    assert "[/tmp] [Errno 28]" in out
    assert "ready: whisper on port 8004" in out
