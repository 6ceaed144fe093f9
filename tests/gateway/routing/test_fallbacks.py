"""Fallback models of the catalogue, used only while the requested model is not available."""

import pytest

from gateway.routing import Router
from kit.config.catalogue import Catalogue, Entry
from kit.errors import ModelLoading, NoHealthyBackend
from tests.gateway import running
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.plain import CHAT, make_backend, routing_request

CATALOGUE = Catalogue(
    [
        Entry.model_validate(
            {"name": "qwen", "kind": "llm", "hf_repo": "org/qwen", "fallbacks": ["tinyllama", "llava"]}
        ),
        Entry.model_validate({"name": "tinyllama", "kind": "llm", "hf_repo": "org/tinyllama"}),
        Entry.model_validate({"name": "llava", "kind": "multimodal", "hf_repo": "org/llava"}),
    ]
)


def served(router: Router, model: str) -> str:
    """Return the model that serves a request for `model`."""
    request = routing_request(CHAT, model)
    choice = router.choose(request, 1.0)
    assert choice is not None
    router.admit(choice, request, 1.0)
    return choice.candidate.offer.name


def test_fallbacks_in_order_while_needed() -> None:
    backends = {name: make_backend(name, name) for name in ("qwen", "tinyllama", "llava")}
    router = Router(backends.values(), CATALOGUE)

    def state(name: str, state: str) -> None:
        backends[name].observe(state, "for a test")  # type: ignore[arg-type]
        router.clear_cache()

    assert served(router, "qwen") == "qwen"
    state("qwen", "unhealthy")
    assert served(router, "qwen") == "tinyllama"
    state("tinyllama", "loading")
    assert served(router, "org/qwen") == "llava"
    state("qwen", "healthy")
    assert served(router, "qwen") == "qwen"
    assert router.fallbacks_used == {("qwen", "tinyllama"): 1, ("org/qwen", "llava"): 1}


def test_no_fallback_without_the_catalogue_key() -> None:
    router = Router([make_backend("a", "qwen"), make_backend("b", "tinyllama", state="unhealthy")], CATALOGUE)
    with pytest.raises(NoHealthyBackend):
        router.choose(routing_request(CHAT, "tinyllama"), 1.0)


def test_error_names_model_and_fallbacks() -> None:
    backends = [make_backend("a", "qwen", state="loading"), make_backend("b", "tinyllama", state="unhealthy")]
    with pytest.raises(ModelLoading) as caught:
        Router(backends, CATALOGUE).choose(routing_request(CHAT, "qwen"), 1.0)
    assert caught.value.message.startswith("qwen is loading on a")
    assert caught.value.message.endswith("Its fallbacks are not available either: tinyllama, llava.")


def test_unserved_model_falls_back() -> None:
    assert served(Router([make_backend("b", "tinyllama")], CATALOGUE), "qwen") == "tinyllama"


async def test_fallback_in_body_headers_and_metrics(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    primary = await start_backend()
    secondary = await start_backend("llm-secondary", model="tinyllama")
    models = running.CATALOGUE.replace("aliases: [fast]", "fallbacks: [tinyllama]")
    gateway = await start_gateway(primary, secondary, models=models)
    assert (await gateway.chat("qwen")).headers["x-served-model"] == "qwen"
    # It breaks off at once, and does not come back.
    primary.switches.reset = True
    answer = await gateway.chat("qwen")
    assert answer.status_code == 200
    assert answer.headers["x-served-model"] == "tinyllama"
    assert answer.headers["x-attempts"] == "2"
    await primary.stop()
    await gateway.until(lambda: gateway.backend("llm-primary").state == "unhealthy")
    answer = await gateway.chat("qwen")
    assert answer.json()["asked"]["model"] == "tinyllama"
    assert answer.headers["x-attempts"] == "1"
    metrics = (await gateway.http.get("/metrics")).text
    assert 'gateway_fallbacks_total{model="qwen",served="tinyllama"} 2.0' in metrics
