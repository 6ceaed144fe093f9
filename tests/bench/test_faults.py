"""Classification of responses in bench.faults: lost, wrong, reported or silent cuts."""

import json

import pytest

from bench.faults.load import TOKENS, Load, Tally

MARK = "0123abcd"
WORDS = [f"token{index}.{MARK} " for index in range(TOKENS)]


def whole(words: list[str]) -> bytes:
    """Return a response that is not streamed."""
    return json.dumps({"choices": [{"message": {"content": "".join(words)}}]}).encode()


def events(words: list[str], end: str = "[DONE]") -> bytes:
    """Return a stream."""
    lines = [json.dumps({"choices": [{"delta": {"content": word}}]}) for word in words]
    return b"".join(f"data: {line}\n\n".encode() for line in [*lines, end])


ERROR = json.dumps({"error": {"message": "lost"}})


@pytest.mark.parametrize(
    ("status", "body", "stream", "tied", "expected"),
    [
        (200, whole(WORDS), False, False, Tally()),
        (200, events(WORDS), True, False, Tally()),
        (200, whole(WORDS[1:]), False, False, Tally(wrong_tokens=1)),
        (200, events([*WORDS[:3], *WORDS[2:]]), True, False, Tally(wrong_tokens=1)),
        (200, events([WORDS[0].replace(MARK, "ffffffff"), *WORDS[1:]]), True, False, Tally(wrong_tokens=1)),
        (503, b"{}", False, False, Tally(failed=1)),
        (200, events(WORDS[:4], ERROR), True, True, Tally(reported_cuts=1)),
        (200, events(WORDS[:4], ERROR), True, False, Tally(reported_cuts=1, failed=1)),
        (200, events(WORDS[:4], ERROR)[:-3], True, True, Tally(silent_cuts=1, failed=1)),
        (200, events(WORDS[:4], WORDS[4]), True, True, Tally(silent_cuts=1, failed=1)),
    ],
)
def test_responses_are_classified(status: int, body: bytes, stream: bool, tied: bool, expected: Tally) -> None:
    load = Load(port=0, workers=0)
    load._judge(status, body, stream=stream, tied=tied, mark=MARK)
    load.tally.reasons.clear()
    assert load.tally == expected
