"""The routing decision by expected time to the first token, on plain objects."""

from collections import Counter
from dataclasses import replace

from gateway.backends.backend import Backend
from gateway.routing import Choice, Router, RoutingRequest
from tests.gateway.plain import CATALOGUE, CHAT, make_backend, routing_request

# Times to the first token that backends have shown, in seconds, for a request of REQUEST's length.
FAST_S, SLOW_S = 0.1, 0.5
REQUEST = routing_request(CHAT, "qwen", stream=True, size=1024)


def learn(backend: Backend, seconds: float, now: float = 1.0) -> None:
    """Record a response to a request like REQUEST after `seconds`."""
    ticket = backend.load.admit(backend.traffic, 1.0, now - seconds, shows_first_token=True)
    ticket.first_byte(now, ok=True)
    ticket.end("http_200")


def send(router: Router, request: RoutingRequest = REQUEST, now: float = 1.0) -> Backend:
    """Choose a backend and send it the request, which waits there."""
    choice = router.choose(request, now)
    assert choice is not None
    router.admit(choice, request, now)
    return choice.candidate.backend


def chosen(choice: Choice | None) -> Backend:
    assert choice is not None
    return choice.candidate.backend


def test_fastest_idle_backend_wins() -> None:
    fast, slow = make_backend("fast", "qwen"), make_backend("slow", "qwen")
    learn(fast, FAST_S)
    learn(slow, SLOW_S)
    assert chosen(Router([slow, fast], CATALOGUE).choose(REQUEST, 1.0)) is fast


def test_queue_outweighs_speed() -> None:
    """A fast backend gets requests until its queue makes it as slow as the slow one."""
    fast, slow = make_backend("fast", "qwen"), make_backend("slow", "qwen")
    learn(fast, FAST_S)
    learn(slow, SLOW_S)
    router = Router([slow, fast], CATALOGUE)
    names = [send(router).name for _ in range(12)]
    assert set(names[:3]) == {"fast"}
    assert 2 <= names.count("slow") <= 4


def test_long_prompt_outweighs_short_ones() -> None:
    long, short = make_backend("long", "qwen"), make_backend("short", "qwen")
    for backend in (long, short):
        learn(backend, FAST_S)
    long.load.admit(long.traffic, 64.0, 1.0, shows_first_token=True)
    for _ in range(3):
        short.load.admit(short.traffic, 1.0, 1.0, shows_first_token=True)
    assert chosen(Router([long, short], CATALOGUE).choose(REQUEST, 1.0)) is short


def test_equal_backends_take_turns() -> None:
    router = Router([make_backend(name, "qwen") for name in "abc"], CATALOGUE)
    order = []
    for _ in range(6):
        choice = router.choose(REQUEST, 1.0)
        assert choice is not None
        router.admit(choice, REQUEST, 1.0).end("http_200")
        order.append(choice.candidate.backend.name)
    assert order == ["a", "b", "c", "a", "b", "c"]


def test_weights_divide_requests() -> None:
    """Idle or loaded, a weight of 3 gets three times as many."""
    heavy, light = make_backend("heavy", "qwen", weight=3.0), make_backend("light", "qwen")
    for idle in (True, False):
        router = Router([light, heavy], CATALOGUE)
        names: Counter[str] = Counter()
        for _ in range(40):
            choice = router.choose(REQUEST, 1.0)
            assert choice is not None
            ticket = router.admit(choice, REQUEST, 1.0)
            names[choice.candidate.backend.name] += 1
            if idle:
                ticket.end("http_200")
        assert names == {"heavy": 30, "light": 10}


def test_added_backend_does_not_catch_up() -> None:
    """It takes its turns from then on, not those that it missed."""
    old = [make_backend(name, "qwen") for name in "ab"]
    router = Router(backends := [*old], CATALOGUE)
    for _ in range(100):
        choice = router.choose(REQUEST, 1.0)
        assert choice is not None
        router.admit(choice, REQUEST, 1.0).end("http_200")
    backends.append(make_backend("c", "qwen"))
    router.clear_cache()
    names: Counter[str] = Counter()
    for _ in range(9):
        choice = router.choose(REQUEST, 1.0)
        assert choice is not None
        router.admit(choice, REQUEST, 1.0).end("http_200")
        names[choice.candidate.backend.name] += 1
    assert names == {"a": 3, "b": 3, "c": 3}


def test_unmeasured_backend_counts_as_the_best() -> None:
    """And does not get all requests."""
    known, fresh = make_backend("known", "qwen"), make_backend("fresh", "qwen")
    learn(known, FAST_S)
    router = Router([known, fresh], CATALOGUE)
    assert Counter(send(router).name for _ in range(6)) == {"known": 3, "fresh": 3}


def test_overdue_first_byte_makes_a_backend_expensive() -> None:
    silent, well = make_backend("silent", "qwen"), make_backend("well", "qwen")
    for backend in (silent, well):
        learn(backend, FAST_S)
    silent.load.admit(silent.traffic, 1.0, 1.0, shows_first_token=True)
    for _ in range(3):
        well.load.admit(well.traffic, 1.0, 2.0, shows_first_token=True)
    router = Router([silent, well], CATALOGUE)
    assert chosen(router.choose(REQUEST, 1.05)) is silent
    assert chosen(router.choose(REQUEST, 2.0)) is well


def test_slow_backend_is_tried_again() -> None:
    """Avoided at once after one slow response, and tried again seconds later."""
    shaky, steady = make_backend("shaky", "qwen"), make_backend("steady", "qwen")
    for tenth in range(10):
        learn(shaky, FAST_S, 1.0 + tenth / 10)
        learn(steady, FAST_S * 1.5, 1.0 + tenth / 10)
    router = Router([shaky, steady], CATALOGUE)
    assert chosen(router.choose(REQUEST, 2.0)) is shaky
    learn(shaky, FAST_S * 4, 3.0)
    assert chosen(router.choose(REQUEST, 3.0)) is steady
    assert any(chosen(router.choose(REQUEST, 3.0 + later)) is shaky for later in range(120))


def test_fast_error_is_not_measured() -> None:
    backend = make_backend("a", "qwen")
    backend.load.admit(backend.traffic, 1.0, 1.0, shows_first_token=True).first_byte(1.001, ok=False)
    assert not backend.load.first_token.is_known
    assert backend.load.pending(1.001) == 0


def test_unstreamed_request_counts_as_read_in_time() -> None:
    """It shows no first token: its prompt counts as read when it should have been."""
    backend = make_backend("a", "qwen")
    learn(backend, FAST_S)
    ticket = backend.load.admit(backend.traffic, 1.0, 2.0, shows_first_token=False)
    assert backend.load.pending(2.05) > 0
    assert backend.load.pending(2.15) == 0
    ticket.end("http_200")
    assert backend.load.pending(2.2) == 0


def test_busy_backend_is_a_second_choice() -> None:
    busy, well = make_backend("busy", "qwen", state="busy"), make_backend("well", "qwen")
    assert chosen(Router([busy, well], CATALOGUE).choose(REQUEST, 1.0)) is well
    assert chosen(Router([busy], CATALOGUE).choose(REQUEST, 1.0)) is busy


def test_full_backend_gets_requests_only_if_all_are_full() -> None:
    """Until its pause is over, however slow and busy the other is, and even if it is a conversation's home."""
    full, other = make_backend("full", "qwen"), make_backend("other", "qwen", state="busy")
    learn(full, FAST_S)
    learn(other, 100 * SLOW_S)
    for _ in range(9):
        other.load.admit(other.traffic, 64.0, 1.0, shows_first_token=True)
    full.load.full_until = 5.0
    router = Router([full, other], CATALOGUE)
    sessions = [replace(REQUEST, session=bytes([number])) for number in range(20)]
    assert {chosen(router.choose(request, 4.0)) for request in (REQUEST, *sessions)} == {other}
    assert chosen(router.choose(REQUEST, 5.0)) is full
    other.load.full_until = 9.0
    assert chosen(router.choose(REQUEST, 4.0)) is full


def test_full_backends_do_not_crowd_out_the_sample() -> None:
    """Of many candidates, the two drawn ones may both be full."""
    backends = [make_backend(f"b{number}", "qwen") for number in range(20)]
    for backend in backends[:19]:
        backend.load.full_until = 5.0
    assert chosen(Router(backends, CATALOGUE).choose(REQUEST, 4.0)) is backends[19]
    backends[19].load.full_until = 5.0
    assert Router(backends, CATALOGUE).choose(REQUEST, 4.0) is not None


def test_tried_backends_are_excluded() -> None:
    a, b = make_backend("a", "qwen"), make_backend("b", "qwen")
    router = Router([a, b], CATALOGUE)
    assert chosen(router.choose(REQUEST, 1.0, tried=[a])) is b
    assert router.choose(REQUEST, 1.0, tried=[a, b]) is None
    assert Router([a], CATALOGUE).choose(REQUEST, 1.0, tried=[a]) is None


def test_two_of_many_are_scored() -> None:
    backends = [make_backend(f"b{number}", "qwen") for number in range(20)]
    for number, backend in enumerate(backends):
        learn(backend, FAST_S + number)
    draws = iter([0.5, 0.1])
    router = Router(backends, CATALOGUE, draw=lambda: next(draws))
    # The tenth, and the one two places on.
    assert chosen(router.choose(REQUEST, 1.0)).name == "b10"
    assert next(draws, None) is None
