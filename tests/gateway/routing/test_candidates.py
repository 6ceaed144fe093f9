"""Which backends may answer: every rule of the design, on plain objects."""

import pytest

from gateway.backends.backend import Backend
from gateway.backends.health_state import State
from gateway.backends.offers import offer_of_id
from gateway.discovery.target import make_target
from gateway.routing import Candidate, Router
from gateway.routing.candidates import available, candidates
from gateway.upstream.pool import Pool
from kit.errors import ApiError, InvalidRequest, ModelLoading, ModelNotFound, NoHealthyBackend
from tests.gateway.plain import CATALOGUE, CHAT, CLOCK, KINDS, full_cluster, make_backend, wants


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
    assert {candidate.backend.name for candidate in found} == chosen


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
    with pytest.raises(InvalidRequest, match="Use one of") as caught:
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
    assert [candidate.offer.name for candidate in found] == ["llava"]


@pytest.mark.parametrize("state", ["loading", "unhealthy", "draining", "stuck"])
def test_only_usable_states_get_requests(state: State) -> None:
    """Loading, dead, stuck and drained backends get nothing while another is well."""
    bad, good = make_backend("bad", "qwen", state=state), make_backend("good", "qwen")
    found = available(candidates(wants(CHAT, "qwen"), [bad, good], CATALOGUE))
    assert [candidate.backend.name for candidate in found] == ["good"]


def test_all_down_names_each() -> None:
    """When all backends of a model are down, the 503 names each with its reason."""
    backends = [make_backend("a", "qwen", state="unhealthy"), make_backend("b", "qwen")]
    backends[1].set_draining(True)
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


@pytest.mark.parametrize(
    ("requested", "written"), [("qwen", None), ("fast", None), ("org/qwen", None), (None, None), ("cluster", "qwen")]
)
def test_own_service_knows_its_names(requested: str | None, written: str | None) -> None:
    """Our own services get every name they know unchanged, and their own name for `cluster`."""
    backend = make_backend("a", "qwen")
    candidate = Candidate(backend, backend.offers[0])
    assert candidate.upstream_model(requested) == written


@pytest.mark.parametrize(("requested", "written"), [("org/qwen", None), ("qwen", "org/qwen"), (None, "org/qwen")])
def test_foreign_server_gets_its_own_name(requested: str | None, written: str | None) -> None:
    """A foreign server gets the name that it lists, also when the request named none."""
    target = make_target("f", "http://127.0.0.1:1")
    backend = Backend(target, Pool(target), CLOCK)
    candidate = Candidate(backend, offer_of_id("org/qwen", CATALOGUE.find("org/qwen"), None))
    assert candidate.offer.kind == "llm"
    assert candidate.offer.name == "qwen"
    assert candidate.upstream_model(requested) == written


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
    assert len(router.usable(asked)) == 2
    assert router.usable(asked) is router.usable(wants(CHAT, "qwen"))
    backends[0].observe("unhealthy", "died")
    router.clear_cache()
    assert [candidate.backend.name for candidate in router.usable(asked)] == ["b"]
