"""Candidates by route, model, kind and state, on plain objects."""

import pytest

from gateway.backends.backend import Backend
from gateway.backends.health_state import State
from gateway.backends.offers import offer_of_id
from gateway.discovery.target import make_target
from gateway.routing import Candidate, Router
from gateway.routing.candidates import available, candidates
from gateway.upstream.pool import Pool
from kit.errors import ApiError, InvalidRequest, ModelLoading, ModelNotFound, NoHealthyBackend
from tests.gateway.plain import CATALOGUE, CHAT, CLOCK, KINDS, full_cluster, make_backend, routing_request


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
        ("/v1/messages/count_tokens", None, False, {"s-qwen", "s-tinyllama"}),
        ("/v1/messages/count_tokens", "cluster", True, {"s-llava"}),
        ("/v1/embeddings", None, False, {"s-minilm"}),
        ("/v1/embeddings", "cluster", False, {"s-minilm"}),
        ("/v1/embeddings", "org/minilm", False, {"s-minilm"}),
        ("/v1/rerank", None, False, {"s-ranker"}),
        ("/rerank", None, False, {"s-ranker"}),
        ("/v2/rerank", "ranker", False, {"s-ranker"}),
        ("/v1/score", None, False, {"s-ranker"}),
        ("/v1/audio/transcriptions", None, False, {"s-whisper"}),
        ("/v1/audio/translations", "whisper", False, {"s-whisper"}),
        ("/tokenize", None, False, {"s-qwen", "s-tinyllama"}),
        ("/tokenize", "minilm", False, {"s-minilm"}),
        ("/detokenize", "llava", False, {"s-llava"}),
    ],
)
def test_route_and_model_select_candidates(path: str, model: str | None, images: bool, chosen: set[str]) -> None:
    """Images need a multimodal model if the gateway chooses the model."""
    found = candidates(routing_request(path, model, images=images), full_cluster(), CATALOGUE)
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
def test_wrong_kind_is_400_with_fitting_models(path: str, model: str) -> None:
    with pytest.raises(InvalidRequest, match="Use one of") as caught:
        candidates(routing_request(path, model), full_cluster(), CATALOGUE)
    assert caught.value.code == "wrong_model_kind"


def test_unknown_model_is_404_with_known_names() -> None:
    with pytest.raises(ModelNotFound) as caught:
        candidates(routing_request(CHAT, "gpt-4o"), full_cluster(), CATALOGUE)
    for name in (*KINDS, "cluster"):
        assert name in caught.value.message


def test_unserved_catalogue_model_is_404() -> None:
    """If the models of all services are known."""
    with pytest.raises(ModelNotFound):
        candidates(routing_request(CHAT, "tinyllama"), [make_backend("one", "qwen")], CATALOGUE)


@pytest.mark.parametrize("model", ["qwen", "fast", None, "cluster"])
def test_unprobed_service_may_serve_the_model(model: str | None) -> None:
    """Before its first probe, a catalogue model is a 503, not a 404."""
    silent = make_backend("llm-primary", state="unhealthy")
    with pytest.raises(NoHealthyBackend, match="llm-primary"):
        candidates(routing_request(CHAT, model), [silent], CATALOGUE)


def test_no_service_of_the_kind_is_404() -> None:
    with pytest.raises(ApiError, match="no transcription model") as caught:
        candidates(routing_request("/v1/audio/transcriptions"), [make_backend("one", "qwen")], CATALOGUE)
    assert caught.value.status == 404


def test_multimodal_model_serves_text_if_alone() -> None:
    found = candidates(routing_request(CHAT), [make_backend("s-llava", "llava")], CATALOGUE)
    assert [candidate.offer.name for candidate in found] == ["llava"]


@pytest.mark.parametrize("state", ["loading", "unhealthy", "draining", "stuck"])
def test_unusable_states_get_no_requests(state: State) -> None:
    bad, good = make_backend("bad", "qwen", state=state), make_backend("good", "qwen")
    found = available(candidates(routing_request(CHAT, "qwen"), [bad, good], CATALOGUE))
    assert [candidate.backend.name for candidate in found] == ["good"]


def test_all_down_is_503_with_reasons() -> None:
    backends = [make_backend("a", "qwen", state="unhealthy"), make_backend("b", "qwen")]
    backends[1].set_draining(True)
    with pytest.raises(NoHealthyBackend) as caught:
        available(candidates(routing_request(CHAT, "qwen"), backends, CATALOGUE))
    assert "a is unhealthy (unhealthy for a test)" in caught.value.message
    assert "b is draining" in caught.value.message
    assert caught.value.headers["Retry-After"] == "2"


def test_loading_is_503_with_progress() -> None:
    backend = make_backend("a", "qwen")
    backend.observe("loading", "fetching", progress=0.42)
    with pytest.raises(ModelLoading, match=r"42 %.*fetching"):
        available(candidates(routing_request(CHAT, "qwen"), [backend], CATALOGUE))


@pytest.mark.parametrize(
    ("requested", "written"), [("qwen", None), ("fast", None), ("org/qwen", None), (None, None), ("cluster", "qwen")]
)
def test_own_service_accepts_all_its_names(requested: str | None, written: str | None) -> None:
    backend = make_backend("a", "qwen")
    candidate = Candidate(backend, backend.offers[0])
    assert candidate.upstream_model(requested) == written


@pytest.mark.parametrize(("requested", "written"), [("org/qwen", None), ("qwen", "org/qwen"), (None, "org/qwen")])
def test_foreign_server_gets_its_listed_name(requested: str | None, written: str | None) -> None:
    target = make_target("f", "http://127.0.0.1:1")
    backend = Backend(target, Pool(target), CLOCK)
    candidate = Candidate(backend, offer_of_id("org/qwen", CATALOGUE.find("org/qwen"), None))
    assert candidate.offer.kind == "llm"
    assert candidate.offer.name == "qwen"
    assert candidate.upstream_model(requested) == written


def test_foreign_server_of_unknown_kind() -> None:
    """It serves requests that name its model, and text requests without a model."""
    backend = make_backend("foreign", "some/model")
    for path in (CHAT, "/v1/embeddings", "/v1/audio/transcriptions"):
        assert candidates(routing_request(path, "some/model"), [backend], CATALOGUE)
    assert candidates(routing_request(CHAT), [backend], CATALOGUE)


def test_candidates_are_cached_until_cleared() -> None:
    backends = [make_backend("a", "qwen"), make_backend("b", "qwen")]
    router = Router(backends, CATALOGUE)
    asked = routing_request(CHAT, "qwen")
    assert len(router.usable(asked)) == 2
    assert router.usable(asked) is router.usable(routing_request(CHAT, "qwen"))
    backends[0].observe("unhealthy", "died")
    router.clear_cache()
    assert [candidate.backend.name for candidate in router.usable(asked)] == ["b"]
