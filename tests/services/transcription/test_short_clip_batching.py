"""Short queued recordings share a batch, and each client gets its own text."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from tests.services.fake_service import WAIT_S, Start, wait_for_metric
from tests.services.transcription.fake_engine import FakeEngine
from tests.services.transcription.recordings import tone, wav


def text(seconds: int) -> str:
    return " ".join(f"word {n}." for n in range(seconds))


@contextmanager
def queue_behind_another(
    client: httpx2.Client, engine: FakeEngine, *posts: tuple[int, dict[str, Any]]
) -> Iterator[list[Any]]:
    """Queue recordings (seconds, fields) behind one in progress; yields their responses."""
    responses: list[Any] = [None] * (len(posts) + 1)

    def post(number: int, seconds: int, fields: dict[str, Any]) -> None:
        file = {"file": ("a.wav", wav(tone(seconds)), "audio/wav")}
        responses[number] = client.post("/v1/audio/transcriptions", files=file, data=fields)

    engine.gate.close()
    threads = []
    for number, (seconds, fields) in enumerate(((1, {}), *posts)):
        threads.append(threading.Thread(target=post, args=(number, seconds, fields)))
        threads[-1].start()
        if number == 0:
            engine.gate.wait_until_reached()
        else:
            wait_for_metric(client, "transcription_recordings_queued", number)
    engine.gate.open()
    for thread in threads:
        thread.join(WAIT_S)
    yield responses[1:]


def test_queued_recordings_share_batches(client: httpx2.Client, engine: FakeEngine) -> None:
    """Up to the engine's limit; the rest forms the next batch."""
    with queue_behind_another(client, engine, *((seconds, {}) for seconds in (2, 3, 4, 2, 3))) as responses:
        assert [response.json()["text"] for response in responses] == [text(seconds) for seconds in (2, 3, 4, 2, 3)]
    assert sorted(len(batch) for batch in engine.batches) == [2, 3]
    assert sorted(length for batch in engine.batches for length in batch) == [2, 2, 3, 3, 4]


def test_only_short_plain_recordings_are_batched(client: httpx2.Client, engine: FakeEngine) -> None:
    not_batchable = [
        (40, {}),
        (2, {"prompt": "names"}),
        (2, {"temperature": "0.5"}),
        (2, {"response_format": "srt"}),
        (2, {"stream": "true"}),
        (2, {"language": "de"}),
    ]
    with queue_behind_another(client, engine, (3, {}), *not_batchable, (4, {})) as responses:
        assert [response.status_code for response in responses] == [200] * 8
        assert responses[1].json()["text"] == text(40)
    assert sorted(engine.batches[0]) == [3, 4]
    assert len(engine.batches) == 1


def test_failed_in_a_batch_are_repeated_alone(client: httpx2.Client, engine: FakeEngine) -> None:
    """A single recording, or all of a failed batch."""
    engine.fails_in_batch = 3
    with queue_behind_another(client, engine, (2, {}), (3, {})) as responses:
        assert [response.json()["text"] for response in responses] == [text(2), text(3)]
    assert len(engine.requests) == 2  # the first, and the repeated one
    engine.batch_fails = True
    with queue_behind_another(client, engine, (2, {}), (4, {})) as responses:
        assert [response.json()["text"] for response in responses] == [text(2), text(4)]
    assert len(engine.batches) == 2


def test_invalid_recording_does_not_fail_its_batch(start: Start, engine: FakeEngine) -> None:
    with start(engine) as client:
        with queue_behind_another(client, engine, (2, {}), (0, {}), (3, {})) as responses:
            assert [response.status_code for response in responses] == [200, 400, 200]
            assert responses[1].json()["error"]["code"] == "audio_too_short"
        assert sorted(engine.batches[0]) == [2, 3]
