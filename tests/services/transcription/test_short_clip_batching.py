"""Short recordings that wait together are heard in one batch, and each client gets its own text."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from tests.services.transcription.conftest import Start
from tests.services.transcription.fake_engine import WAIT_S, FakeEngine
from tests.services.transcription.recordings import tone, wav
from tests.services.transcription.test_service import wait_for_metric


def text(seconds: int) -> str:
    return " ".join(f"word {n}." for n in range(seconds))


@contextmanager
def behind_another(
    client: httpx2.Client, engine: FakeEngine, *posts: tuple[int, dict[str, Any]]
) -> Iterator[list[Any]]:
    """Let recordings of so many seconds, with these fields, wait behind one that is being heard; gives the answers."""
    answers: list[Any] = [None] * (len(posts) + 1)

    def post(number: int, seconds: int, fields: dict[str, Any]) -> None:
        file = {"file": ("a.wav", wav(tone(seconds)), "audio/wav")}
        answers[number] = client.post("/v1/audio/transcriptions", files=file, data=fields)

    engine.hold()
    threads = []
    for number, (seconds, fields) in enumerate(((1, {}), *posts)):
        threads.append(threading.Thread(target=post, args=(number, seconds, fields)))
        threads[-1].start()
        if number == 0:
            engine.wait_until_hearing()
        else:
            wait_for_metric(client, "transcription_recordings_queued", number)
    engine.gate.set()
    for thread in threads:
        thread.join(WAIT_S)
    yield answers[1:]


def test_one_batch(client: httpx2.Client, engine: FakeEngine) -> None:
    """As many as the engine takes; what is left over makes the next batch."""
    with behind_another(client, engine, *((seconds, {}) for seconds in (2, 3, 4, 2, 3))) as answers:
        assert [answer.json()["text"] for answer in answers] == [text(seconds) for seconds in (2, 3, 4, 2, 3)]
    assert sorted(len(batch) for batch in engine.batches) == [2, 3]
    assert sorted(length for batch in engine.batches for length in batch) == [2, 2, 3, 3, 4]


def test_not_for_everyone(client: httpx2.Client, engine: FakeEngine) -> None:
    """Long ones, those with a prompt, a temperature, times to tell or another language are heard by themselves."""
    by_itself = [
        (40, {}),
        (2, {"prompt": "names"}),
        (2, {"temperature": "0.5"}),
        (2, {"response_format": "srt"}),
        (2, {"stream": "true"}),
        (2, {"language": "de"}),
    ]
    with behind_another(client, engine, (3, {}), *by_itself, (4, {})) as answers:
        assert [answer.status_code for answer in answers] == [200] * 8
        assert answers[1].json()["text"] == text(40)
    assert sorted(engine.batches[0]) == [3, 4]
    assert len(engine.batches) == 1


def test_what_a_batch_does_not_understand(client: httpx2.Client, engine: FakeEngine) -> None:
    """Such a recording is heard again by itself; so is every one of a batch that fails."""
    engine.not_in_batches = 3
    with behind_another(client, engine, (2, {}), (3, {})) as answers:
        assert [answer.json()["text"] for answer in answers] == [text(2), text(3)]
    assert len(engine.asked) == 2  # the first, and this one
    engine.batch_breaks = True
    with behind_another(client, engine, (2, {}), (4, {})) as answers:
        assert [answer.json()["text"] for answer in answers] == [text(2), text(4)]
    assert len(engine.batches) == 2


def test_a_bad_one_spoils_nothing(start: Start, engine: FakeEngine) -> None:
    """One without sound among them is told so; the others are heard."""
    with start(engine) as client:
        with behind_another(client, engine, (2, {}), (0, {}), (3, {})) as answers:
            assert [answer.status_code for answer in answers] == [200, 400, 200]
            assert answers[1].json()["error"]["code"] == "audio_too_short"
        assert sorted(engine.batches[0]) == [2, 3]
