"""Which backend is chosen: every rule of the design, on plain objects."""

import pytest

from gateway.backends import Backend, Offer, State, offer_of_entry, offer_of_id
from gateway.endpoints import BY_PATH
from gateway.routing import Candidate, Router, Wants, available, candidates, choose
from gateway.targets import make_target
from gateway.upstream import Pool
from kit.catalogue import Catalogue, Entry, Kind
from kit.errors import ApiError, InvalidRequest, ModelLoading, ModelNotFound, NoHealthyBackend

KINDS: dict[str, Kind] = {
    "qwen": "llm",
    "tinyllama": "llm",
    "llava": "multimodal",
    "minilm": "embedding",
    "ranker": "reranker",
    "whisper": "transcription",
}
ENTRIES = [
    Entry(name=name, kind=kind, hf_repo=f"org/{name}", aliases=("fast",) if name == "qwen" else ())
    for name, kind in KINDS.items()
]
CATALOGUE = Catalogue(ENTRIES)


def make_backend(name: str, *models: str, state: State = "healthy", kind: Kind | None = None) -> Backend:
    """A backend that serves catalogue models, or foreign ids where the catalogue has none."""
    target = make_target(name, "http://127.0.0.1:1", kind=kind)
    backend = Backend(target, Pool(target))
    offers: list[Offer] = []
    for model in models:
        entry = CATALOGUE.find(model)
        offers.append(offer_of_entry(entry) if entry else offer_of_id(model, None, kind))
    backend.offer(tuple(offers))
    backend.observe(state, None if state == "healthy" else f"{state} for a test")
    return backend


def wants(path: str, model: str | None = None, *, images: bool = False, stream: bool = False) -> Wants:
    return Wants(BY_PATH[path.encode()], model, images=images, stream=stream)


def full_cluster() -> list[Backend]:
    return [make_backend(f"s-{name}", name) for name in KINDS]


CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("path", "model", "images", "chosen"),
    [
        (CHAT, None, False, {"s-qwen", "s-tinyllama"}),
        (CHAT, "cluster", False, {"s-qwen", "s-tinyllama"}),
        (CHAT, None, True, {"s-llava"}),
        (CHAT, "cluster", True, {"s-llava"}),
        (CHAT, "qwen", False, {"s-qwen"}),
        (CHAT, "fast", False, {"s-qwen"}),
        (CHAT, "org/qwen", False, {"s-qwen"}),
        (CHAT, "tinyllama", False, {"s-tinyllama"}),
        (CHAT, "llava", False, {"s-llava"}),
        (CHAT, "llava", True, {"s-llava"}),
        (CHAT, "qwen", True, {"s-qwen"}),
        ("/v1/completions", None, False, {"s-qwen", "s-tinyllama"}),
        ("/v1/completions", "qwen", False, {"s-qwen"}),
        ("/v1/responses", None, True, {"s-llava"}),
        ("/v1/messages", None, False, {"s-qwen", "s-tinyllama"}),
        ("/v1/embeddings", None, False, {"s-minilm"}),
        ("/v1/embeddings", "cluster", False, {"s-minilm"}),
        ("/v1/embeddings", "org/minilm", False, {"s-minilm"}),
        ("/v1/rerank", None, False, {"s-ranker"}),
        ("/v1/score", None, False, {"s-ranker"}),
        ("/v1/audio/transcriptions", None, False, {"s-whisper"}),
        ("/v1/audio/translations", "whisper", False, {"s-whisper"}),
        ("/tokenize", None, False, {"s-qwen", "s-tinyllama"}),
        ("/tokenize", "minilm", False, {"s-minilm"}),
        ("/detokenize", "llava", False, {"s-llava"}),
    ],
)
def test_route_and_name_fix_the_candidates(path: str, model: str | None, images: bool, chosen: set[str]) -> None:
    """The route fixes the kind, a name the backends; pictures need a multimodal model where the choice is ours."""
    found = candidates(wants(path, model, images=images), full_cluster(), CATALOGUE)
    assert {pair.backend.name for pair in found} == chosen


@pytest.mark.parametrize(
    ("path", "model"),
    [
        (CHAT, "minilm"),
        (CHAT, "whisper"),
        ("/v1/embeddings", "qwen"),
        ("/v1/rerank", "minilm"),
        ("/v1/audio/transcriptions", "qwen"),
    ],
)
def test_model_of_the_wrong_kind(path: str, model: str) -> None:
    """A model that exists but cannot do this is a 400 that names those that can."""
    with pytest.raises(InvalidRequest, match="Models that do") as caught:
        candidates(wants(path, model), full_cluster(), CATALOGUE)
    assert caught.value.code == "wrong_model_kind"


def test_unknown_model_lists_what_exists() -> None:
    """An unknown name is a 404 with the names there are, and never another model."""
    with pytest.raises(ModelNotFound) as caught:
        candidates(wants(CHAT, "gpt-4o"), full_cluster(), CATALOGUE)
    for name in (*KINDS, "cluster"):
        assert name in caught.value.message


def test_catalogue_model_that_nobody_serves() -> None:
    """A catalogue name without a service is unknown when every service has told what it serves."""
    with pytest.raises(ModelNotFound):
        candidates(wants(CHAT, "tinyllama"), [make_backend("one", "qwen")], CATALOGUE)


@pytest.mark.parametrize("model", ["qwen", "fast", None, "cluster"])
def test_service_that_never_answered(model: str | None) -> None:
    """Before a service has told what it serves, a catalogue model is not unknown but not there yet."""
    silent = make_backend("llm-primary", state="unhealthy")
    with pytest.raises(NoHealthyBackend, match="llm-primary"):
        candidates(wants(CHAT, model), [silent], CATALOGUE)


def test_no_service_of_the_kind_at_all() -> None:
    """A cluster without a transcription service says so with a 404."""
    with pytest.raises(ApiError, match="no transcription model") as caught:
        candidates(wants("/v1/audio/transcriptions"), [make_backend("one", "qwen")], CATALOGUE)
    assert caught.value.status == 404


def test_text_goes_to_a_vision_model_where_there_is_no_other() -> None:
    """A cluster of vision models only answers text with them."""
    found = candidates(wants(CHAT), [make_backend("s-llava", "llava")], CATALOGUE)
    assert [pair.offer.name for pair in found] == ["llava"]


@pytest.mark.parametrize("state", ["loading", "unhealthy", "draining", "stuck"])
def test_only_usable_states_get_requests(state: State) -> None:
    """Loading, dead, stuck and drained backends get nothing while another is well."""
    bad, good = make_backend("bad", "qwen", state=state), make_backend("good", "qwen")
    found = available(candidates(wants(CHAT, "qwen"), [bad, good], CATALOGUE))
    assert [pair.backend.name for pair in found] == ["good"]


def test_all_down_names_each() -> None:
    """When all backends of a model are down, the 503 names each with its reason."""
    backends = [make_backend("a", "qwen", state="unhealthy"), make_backend("b", "qwen")]
    backends[1].drain(True)
    with pytest.raises(NoHealthyBackend) as caught:
        available(candidates(wants(CHAT, "qwen"), backends, CATALOGUE))
    assert "a is unhealthy (unhealthy for a test)" in caught.value.message
    assert "b is draining" in caught.value.message
    assert caught.value.headers["Retry-After"] == "2"


def test_loading_tells_progress() -> None:
    """While the only backend loads, the 503 says how far it is."""
    backend = make_backend("a", "qwen")
    backend.observe("loading", "fetching", progress=0.42)
    with pytest.raises(ModelLoading, match=r"42 %.*fetching"):
        available(candidates(wants(CHAT, "qwen"), [backend], CATALOGUE))


def pairs(*backends: Backend) -> list[Candidate]:
    return [Candidate(backend, backend.offers[0]) for backend in backends]


def test_fastest_wins() -> None:
    """Of two idle backends the one with the lower measured time is chosen."""
    fast, slow = make_backend("fast", "qwen"), make_backend("slow", "qwen")
    fast.ttft.observe(0.1, 1.0)
    slow.ttft.observe(0.5, 1.0)
    chosen = choose(pairs(slow, fast), 1.0, stream=True)
    assert chosen is not None
    assert chosen.backend is fast


def test_load_counts() -> None:
    """A fast backend with a queue loses to a slower idle one."""
    fast, slow = make_backend("fast", "qwen"), make_backend("slow", "qwen")
    fast.ttft.observe(0.1, 1.0)
    fast.in_flight = 9
    slow.ttft.observe(0.5, 1.0)
    chosen = choose(pairs(fast, slow), 1.0, stream=True)
    assert chosen is not None
    assert chosen.backend is slow


def test_equals_take_turns() -> None:
    """Backends that cannot be told apart are chosen in turn."""
    backends = [make_backend(name, "qwen") for name in "abc"]
    order = []
    for turn in range(1, 7):
        chosen = choose(pairs(*backends), 1.0, stream=False)
        assert chosen is not None
        chosen.backend.picked = turn
        order.append(chosen.backend.name)
    assert order == ["a", "b", "c", "a", "b", "c"]


def test_unmeasured_backend_is_tried() -> None:
    """A backend without a sample is taken to be as good as the best, and does not get everything."""
    known, fresh = make_backend("known", "qwen"), make_backend("fresh", "qwen")
    known.ttft.observe(0.1, 1.0)
    known.picked = 5
    first = choose(pairs(known, fresh), 1.0, stream=True)
    assert first is not None
    assert first.backend is fresh
    fresh.in_flight = 1
    second = choose(pairs(known, fresh), 1.0, stream=True)
    assert second is not None
    assert second.backend is known


def test_busy_is_dearer() -> None:
    """A backend that answers no polls while it works is asked only when nothing better is there."""
    busy, well = make_backend("busy", "qwen", state="busy"), make_backend("well", "qwen")
    well.picked = 7
    chosen = choose(pairs(busy, well), 1.0, stream=False)
    assert chosen is not None
    assert chosen.backend is well
    assert choose(pairs(busy), 1.0, stream=False) is not None


def test_tried_ones_are_left_out() -> None:
    """A retry goes elsewhere, and ends when there is no elsewhere."""
    a, b = make_backend("a", "qwen"), make_backend("b", "qwen")
    chosen = choose(pairs(a, b), 1.0, stream=False, tried=[a])
    assert chosen is not None
    assert chosen.backend is b
    assert choose(pairs(a, b), 1.0, stream=False, tried=[a, b]) is None
    assert choose(pairs(a), 1.0, stream=False, tried=[a]) is None


@pytest.mark.parametrize(
    ("requested", "written"), [("qwen", None), ("fast", None), ("org/qwen", None), (None, None), ("cluster", "qwen")]
)
def test_own_service_knows_its_names(requested: str | None, written: str | None) -> None:
    """Our own services get every name they know unchanged, and their own name for `cluster`."""
    (pair,) = pairs(make_backend("a", "qwen"))
    assert pair.upstream_model(requested) == written


@pytest.mark.parametrize(("requested", "written"), [("org/qwen", None), ("qwen", "org/qwen"), (None, "org/qwen")])
def test_foreign_server_gets_its_own_name(requested: str | None, written: str | None) -> None:
    """A foreign server gets the name that it lists, also when the request named none."""
    target = make_target("f", "http://127.0.0.1:1")
    backend = Backend(target, Pool(target))
    pair = Candidate(backend, offer_of_id("org/qwen", CATALOGUE.find("org/qwen"), None))
    assert pair.offer.kind == "llm"
    assert pair.offer.name == "qwen"
    assert pair.upstream_model(requested) == written


def test_foreign_server_of_unknown_kind() -> None:
    """A foreign model that no catalogue knows serves what names it, and text without a name."""
    backend = make_backend("foreign", "some/model")
    for path in (CHAT, "/v1/embeddings", "/v1/audio/transcriptions"):
        assert candidates(wants(path, "some/model"), [backend], CATALOGUE)
    assert candidates(wants(CHAT), [backend], CATALOGUE)


def test_router_remembers_until_told() -> None:
    """The router's remembered answer is gone once something has changed."""
    backends = [make_backend("a", "qwen"), make_backend("b", "qwen")]
    router = Router(backends, CATALOGUE)
    asked = wants(CHAT, "qwen")
    assert len(router.ask(asked)) == 2
    assert router.ask(asked) is router.ask(wants(CHAT, "qwen"))
    backends[0].observe("unhealthy", "died")
    router.forget()
    assert [pair.backend.name for pair in router.ask(asked)] == ["b"]


def test_routing_does_no_io() -> None:
    """The module that decides imports nothing that talks to anybody."""
    import ast
    from pathlib import Path

    import gateway.routing

    tree = ast.parse(Path(gateway.routing.__file__).read_text())
    imported = {
        name.name if isinstance(node, ast.Import) else (node.module or "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert not imported & {"asyncio", "socket", "httpx2", "os", "time", "random"}
