"""Other models answer only where the catalogue says so, and only while the named one cannot."""

import pytest

from gateway.routing import Router
from kit.config.catalogue import Catalogue, Entry
from kit.errors import ModelLoading, NoHealthyBackend
from tests.gateway import running
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.plain import CHAT, make_backend, wants

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
    """What a request for `model` is answered with."""
    request = wants(CHAT, model)
    choice = router.choose(request, 1.0)
    assert choice is not None
    router.admit(choice, request, 1.0)
    return choice.candidate.offer.name


def test_in_their_order_and_only_while_needed() -> None:
    """The first fallback that can answer does, and none once the model itself can again."""
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


def test_nobody_else_falls_back() -> None:
    """A model without the key in the catalogue is never another one."""
    router = Router([make_backend("a", "qwen"), make_backend("b", "tinyllama", state="unhealthy")], CATALOGUE)
    with pytest.raises(NoHealthyBackend):
        router.choose(wants(CHAT, "tinyllama"), 1.0)


def test_the_error_is_the_model_s_own() -> None:
    """Where no fallback can answer either, the error is that of the named model, and names them."""
    backends = [make_backend("a", "qwen", state="loading"), make_backend("b", "tinyllama", state="unhealthy")]
    with pytest.raises(ModelLoading) as caught:
        Router(backends, CATALOGUE).choose(wants(CHAT, "qwen"), 1.0)
    assert caught.value.message.startswith("qwen is loading on a")
    assert caught.value.message.endswith("Its fallbacks are not available either: tinyllama, llava.")


def test_a_model_without_a_service_falls_back() -> None:
    """A model of the catalogue that no service has been started for is answered by its fallback."""
    assert served(Router([make_backend("b", "tinyllama")], CATALOGUE), "qwen") == "tinyllama"


async def test_through_the_gateway(start_backend: StartBackend, start_gateway: StartGateway) -> None:
    """The body names the model that answers, the headers tell the truth, the metrics count it."""
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
