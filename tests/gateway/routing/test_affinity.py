"""Affinity: equal prefixes and named conversations go to one backend, within a load bound."""

import pytest

from gateway.backends.backend import Backend
from gateway.backends.prefix_index import KB, PREFIX_LENGTHS, PrefixIndex, prefix_hashes
from gateway.bodies.json_scan import scan_json
from gateway.endpoints import BY_PATH
from gateway.routing import Router, RoutingRequest
from tests.gateway.plain import CATALOGUE, CHAT, make_backend, routing_request

SYSTEM = b"You are a helpful assistant. " * 200


def backends(count: int = 4) -> list[Backend]:
    """Equal backends that have shown their pace: 0.1 s, and 0.1 s for each KB."""
    made = [make_backend(f"b{number}", "qwen") for number in range(count)]
    for backend in made:
        for kb in (1.0, 8.0, 1.0, 8.0):
            ticket = backend.load.admit(backend.traffic, kb, 0.0, shows_first_token=True)
            ticket.first_byte(0.1 + kb / 10, ok=True)
            ticket.end("http_200")
    return made


def asking(prompt: bytes, session: bytes = b"") -> RoutingRequest:
    return routing_request(CHAT, "qwen", stream=True, size=len(prompt), prompt=(prompt,), session=session)


def send(router: Router, request: RoutingRequest, *, stays: bool = False) -> Backend:
    """Send a request that ends at once, or remains in flight if it `stays`."""
    choice = router.choose(request, 100.0)
    assert choice is not None
    ticket = router.admit(choice, request, 100.0)
    ticket.first_byte(100.0, ok=False)
    if not stays:
        ticket.end("http_200")
    return choice.candidate.backend


def test_equal_prefixes_share_a_backend() -> None:
    router = Router(backends(), CATALOGUE)
    first = send(router, asking(SYSTEM + b"one"))
    assert {send(router, asking(SYSTEM + b"%d" % number)) for number in range(20)} == {first}
    others = {send(router, asking(b"%d: something else" % number * 100)) for number in range(20)}
    assert len(others) == 4


def test_longest_cached_prefix_wins() -> None:
    """A conversation returns to its backend though all have cached the system prompt."""
    router = Router(made := backends(), CATALOGUE)
    for backend in made:
        backend.load.prefixes.add(prefix_hashes((SYSTEM,)), 6.0)
    conversation = SYSTEM + b"Describe all of this. " * 200
    first = send(router, asking(conversation))
    assert {send(router, asking(conversation + b"And then? " * turn)) for turn in range(1, 9)} == {first}


def test_affinity_respects_the_load_bound() -> None:
    made = backends()
    router = Router(made, CATALOGUE, load_bound=1.5)
    for number in range(40):
        send(router, asking(SYSTEM + b"%d" % number), stays=True)
    assert sum(backend.traffic.in_flight for backend in made) == 40
    assert max(backend.traffic.in_flight for backend in made) <= 15


def test_independent_routers_agree() -> None:
    """Two routers without communication send a new prefix to the same backend."""
    for number in range(10):
        prompt = b"%d. " % number + SYSTEM
        names = {send(Router(backends(), CATALOGUE), asking(prompt)).name for _ in range(2)}
        assert len(names) == 1


def test_added_backend_moves_few_conversations() -> None:
    """Only conversations whose new home it is move."""
    keys = [b"session-%d" % number for number in range(200)]
    few, more = backends(4), backends(5)
    moved = 0
    for key in keys:
        before = send(Router(few, CATALOGUE, affinity="session"), asking(b"", key)).name
        after = send(Router(more, CATALOGUE, affinity="session"), asking(b"", key)).name
        assert after in (before, "b4")
        moved += after != before
    assert 20 < moved < 60


@pytest.mark.parametrize("affinity", ["prefix", "session"])
def test_session_keeps_its_backend(affinity: str) -> None:
    """Though its prompts are short and other backends are idle."""
    router = Router(backends(), CATALOGUE, affinity=affinity)  # type: ignore[arg-type]
    first = send(router, asking(b"Hi", b"abc"))
    for number in range(12):
        send(router, asking(b"%d" % number))
        assert send(router, asking(b"Go on %d" % number, b"abc")) is first


def test_session_leaves_a_much_slower_backend() -> None:
    router = Router(backends(), CATALOGUE)
    first = send(router, asking(b"Hi", b"abc"))
    for _ in range(3):
        ticket = first.load.admit(first.traffic, 0.0, 99.0, shows_first_token=True)
        ticket.first_byte(101.0, ok=True)
        ticket.end("http_200")
    assert send(router, asking(b"Hi", b"abc")) is not first


def test_affinity_none_ignores_prompt_and_session() -> None:
    router = Router(backends(), CATALOGUE, affinity="none")
    assert len({send(router, asking(SYSTEM, b"abc")) for _ in range(4)}) == 4


def test_restart_clears_the_prefix_index() -> None:
    (backend,) = backends(1)
    backend.load.prefixes.add(prefix_hashes((SYSTEM,)), 6.0)
    assert backend.load.prefixes.cached_kb(prefix_hashes((SYSTEM,))) == 4
    backend.observe("unhealthy", "died")
    backend.observe("healthy")
    assert backend.load.prefixes.cached_kb(prefix_hashes((SYSTEM,))) == 0


def test_single_candidate_needs_no_hashing(monkeypatch: pytest.MonkeyPatch) -> None:
    router = Router(backends(1), CATALOGUE)
    monkeypatch.setattr("gateway.routing.router.prefix_hashes", None)
    assert send(router, asking(SYSTEM)).name == "b0"


def test_sample_of_many_includes_the_cached_one() -> None:
    draws = iter(number / 97 % 1 for number in range(1000))
    router = Router(backends(30), CATALOGUE, draw=lambda: next(draws))
    first = send(router, asking(SYSTEM))
    assert {send(router, asking(SYSTEM + b"%d" % number)) for number in range(10)} == {first}


def test_old_prefixes_are_evicted() -> None:
    kept = PrefixIndex()
    kept.add(prefix_hashes((SYSTEM,)), 4.0)
    for number in range(300):
        kept.add(prefix_hashes((b"%d" % number + SYSTEM,)), 4.0)
    assert kept.cached_kb(prefix_hashes((SYSTEM,))) == 0
    assert kept.cached_kb(prefix_hashes((b"299" + SYSTEM,))) == 4


@pytest.mark.parametrize("cut", [1, 511, 512, 513, 5000, 60_000])
def test_hashes_do_not_depend_on_piece_boundaries(cut: int) -> None:
    prompt = bytes(range(256)) * 300
    whole = prefix_hashes((prompt,))
    assert len(whole) == len(PREFIX_LENGTHS)
    assert prefix_hashes((prompt[:cut], b"", prompt[cut:])) == whole
    assert prefix_hashes((prompt[:cut],)) == whole[: sum(end <= cut for end in PREFIX_LENGTHS)]
    assert PREFIX_LENGTHS[0] < KB


@pytest.mark.parametrize(
    ("body", "session"),
    [
        (b'{"prompt_cache_key": "a", "user": "b"}', b'"a"'),
        (b'{"user": "b"}', b'"b"'),
        (b'{"session_id": "c"}', b'"c"'),
        (b'{"user": null}', b""),
        (b'{"user": ""}', b""),
        (b"{}", b""),
    ],
)
def test_session_key_members(body: bytes, session: bytes) -> None:
    """The body's members in order of precedence; a header takes precedence over them."""
    endpoint = BY_PATH[CHAT.encode()]
    assert scan_json(body, endpoint).session == session
    assert scan_json(body, endpoint, b"header").session == b"header"


@pytest.mark.parametrize(
    ("path", "body", "prompt"),
    [
        (CHAT, b'{"messages": [1], "tools": [2], "temperature": 3}', b"[2][1]"),
        ("/v1/completions", b'{"prompt": "Once"}', b'"Once"'),
        ("/v1/responses", b'{"input": "Hi", "instructions": "Be brief"}', b'"Be brief""Hi"'),
        ("/v1/messages", b'{"messages": [1], "system": "Be brief"}', b'"Be brief"[1]'),
        ("/v1/embeddings", b'{"input": "Hi"}', b""),
    ],
)
def test_prompt_members(path: str, body: bytes, prompt: bytes) -> None:
    """In the order in which the model reads them; none if nothing is generated."""
    assert b"".join(bytes(memoryview(piece)) for piece in scan_json(body, BY_PATH[path.encode()]).prompt) == prompt
