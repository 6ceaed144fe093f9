"""Hostile model lists, and bodies that fail only when rewritten for a backend."""

import pytest

from gateway.relay.response import MAX_BUFFERED
from gateway.routing import Candidate, RoutingRequest
from tests.gateway.behaviour.test_faults import settled
from tests.gateway.conftest import StartBackend, StartGateway

BAD_KEYS = {
    "key is no UTF-8": b'{"\xff": 1, "messages": []}',
    "key is half a surrogate pair": b'{"\\ud800": 1, "messages": []}',
    "key has a bad escape": b'{"\\x": 1, "messages": []}',
    "value is half a surrogate pair": b'{"messages": [], "user": "\\ud800"}',
    "nested deep": b'{"messages": [], "user": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("connections", [0, 1])
@pytest.mark.parametrize("name", BAD_KEYS)
async def test_body_that_cannot_be_rewritten(
    start_backend: StartBackend, start_gateway: StartGateway, name: str, connections: int
) -> None:
    """A body that parses but cannot get a model name is refused or forwarded; nothing leaks."""
    gateway = await start_gateway(await start_backend(ours=False, model="org/x"))
    for _ in range(connections):
        assert (await gateway.chat()).status_code == 200
    answer = await gateway.http.post("/v1/chat/completions", content=BAD_KEYS[name])
    assert answer.status_code in (200, 400)
    assert answer.status_code == 200 or answer.json()["error"]["code"] is None
    await gateway.until(lambda: settled(gateway))
    assert (await gateway.chat()).status_code == 200


@pytest.mark.parametrize("ours", [True, False])
async def test_model_name_cannot_inject_headers(
    start_backend: StartBackend, start_gateway: StartGateway, ours: bool
) -> None:
    """Its valid models are kept."""
    evil = "a\r\nX-Injected: 1\r\n\r\nbody"
    backend = await start_backend(ours=ours, model=evil if ours else f"good|{evil}|\ud800|{'x' * 5000}")
    gateway = await start_gateway(backend)
    for asked in (evil, None):
        answer = await gateway.chat(asked)
        assert "x-injected" not in answer.headers
        assert answer.status_code == (200 if asked is None and not ours else 503 if ours and asked is None else 404)
    listed = (await gateway.http.get("/v1/models")).json()["data"]
    assert {model["id"] for model in listed} == (set() if ours else {"good", "cluster"})
    if ours:
        assert "invalid model name" in (gateway.backend(backend.name).last_error or "")


@pytest.mark.parametrize("when", [1, 2], ids=["first choice", "second choice"])
async def test_bug_gets_500_with_the_request_id(
    start_backend: StartBackend, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    """Wherever it happens; nothing leaks."""
    gateway = await start_gateway(await start_backend("one", reset=True), await start_backend("two", reset=True))
    usable, calls = gateway.context.router.usable, 0

    def broken(wants: RoutingRequest) -> tuple[Candidate, ...]:
        nonlocal calls
        calls += 1
        return usable(wants) if calls < when else (1 / 0,)  # type: ignore[return-value]

    monkeypatch.setattr(gateway.context.router, "usable", broken)
    answer = await gateway.chat("qwen")
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
    await gateway.until(lambda: settled(gateway))


@pytest.mark.parametrize(("where", "status"), [("scan", 200), ("choose", 500), ("admit", 500)])
async def test_bug_on_the_fast_path_gets_500(
    start_backend: StartBackend, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch,
    where: str, status: int,
) -> None:  # fmt: skip
    """The same where the request would have been relayed in two steps: its head and its answer's are known."""
    gateway = await start_gateway(await start_backend())
    for _ in range(2):
        assert (await gateway.chat("qwen")).status_code == 200
    assert len(gateway.context.request_heads) == 1
    with monkeypatch.context() as broken:
        if where == "scan":
            broken.setattr("gateway.relay.fast_path.scan_json", lambda *_: 1 / 0)
        else:
            broken.setattr(gateway.context.router, where, lambda *_: 1 / 0)
        answer = await gateway.chat("qwen")
        assert answer.status_code == status
        assert status == 200 or answer.headers["x-request-id"] in answer.json()["error"]["message"]
    await gateway.until(lambda: settled(gateway))
    assert (await gateway.chat("qwen")).status_code == 200


async def test_cut_stream_with_a_length_ends_in_an_error_event(
    start_backend: StartBackend, start_gateway: StartGateway
) -> None:
    """The next response is not mixed into it."""
    gateway = await start_gateway(await start_backend(reset_after=2, stream_length=2 * MAX_BUFFERED))
    for number in range(2):
        answer = await gateway.chat("qwen", stream=True, user=str(number))
        assert answer.text.endswith("\n\n")
        assert '"code": "bad_gateway"' in answer.text.split("\n\n")[-2]
    await gateway.until(lambda: settled(gateway))
