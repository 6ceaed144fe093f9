"""Discovery from a watched file that may change at any time without a failed request."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import structlog

from gateway.discovery.services_file import read_services
from gateway.settings import GatewaySettings
from kit.config.settings import SettingsError
from tests.gateway.conftest import StartBackend, StartGateway
from tests.gateway.running import RunningGateway
from tests.support.backends.openai_backend import FakeBackend
from tests.support.resolver import GONE, FakeResolver

# How often the file is looked at here, in seconds.
LOOK_S = 0.01
CLIENTS = 8
RELOADS = 100


class Services:
    """The file as an operator changes it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "services.yaml"
        self._numbers = itertools.count()

    def replace(self, text: str) -> None:
        """Put another file in its place, as editors and configuration management do."""
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.replace(self.path)

    def switch(self, text: str) -> None:
        """Switch links over, as Kubernetes does with a ConfigMap: services.yaml -> ..data/services.yaml -> ..N."""
        folder = self.path.parent / f"..{next(self._numbers)}"
        folder.mkdir()
        (folder / self.path.name).write_text(text)
        link = self.path.parent / "..data"
        new = self.path.parent / "..new"
        new.symlink_to(folder.name)
        new.replace(link)
        if not self.path.is_symlink():
            self.path.unlink(missing_ok=True)
            self.path.symlink_to(f"..data/{self.path.name}")


@pytest.fixture
def services(tmp_path: Path) -> Services:
    folder = tmp_path / "configuration"
    folder.mkdir()
    return Services(folder)


@pytest.fixture
def watching(start_gateway: StartGateway, services: Services) -> Callable[..., Awaitable[RunningGateway]]:
    """Start a gateway with its backends from the file."""

    async def start(text: str, **settings: object) -> RunningGateway:
        services.replace(text)
        return await start_gateway(**({"services_file": services.path, "poll_interval": LOOK_S} | settings))

    return start


def entry(backend: FakeBackend, name: str = "", **more: object) -> str:
    fields = "".join(f", {key}: {value}" for key, value in more.items())
    return f"{name or backend.name}: {{url: '{backend.url}'{fields}}}\n"


def names(gateway: RunningGateway) -> list[str]:
    return [backend.name for backend in gateway.context.backends]


async def test_backends_are_added_changed_and_removed(
    start_backend: StartBackend, watching: Callable[..., Awaitable[RunningGateway]], services: Services
) -> None:
    one, two = await start_backend("one"), await start_backend("two")
    gateway = await watching(entry(one))
    assert names(gateway) == ["one"]
    services.replace(entry(one) + entry(two))
    await gateway.until(lambda: [one.state for one in gateway.context.backends] == ["healthy", "healthy"])
    known = gateway.backend("one")
    services.replace(entry(one, weight=3) + entry(two))
    await gateway.until(lambda: gateway.backend("one").target.weight == 3)
    assert gateway.backend("one") is known
    services.replace(entry(two))
    await gateway.until(lambda: names(gateway) == ["two"])
    assert (await gateway.chat("qwen")).headers["x-served-by"] == "two"


@pytest.mark.parametrize("broken", ["", "{}", "one: [", "two: {url: ftp://x}", "two: {url: http://x, cost: 3}"])
async def test_invalid_file_changes_nothing(
    start_backend: StartBackend,
    watching: Callable[..., Awaitable[RunningGateway]],
    services: Services,
    broken: str,
) -> None:
    one, two = await start_backend("one"), await start_backend("two")
    gateway = await watching(entry(one))
    with structlog.testing.capture_logs() as logs:

        def complaints() -> list[str]:
            return [str(line["reason"]) for line in logs if line["event"].startswith("services file invalid")]

        services.replace(broken)
        await gateway.until(complaints)
        assert names(gateway) == ["one"]
        assert (await gateway.chat("qwen")).status_code == 200
        services.path.unlink()
        await gateway.until(lambda: len(complaints()) == 2)
        services.replace(entry(two))
        await gateway.until(lambda: names(gateway) == ["two"])
    assert len(complaints()) == 2
    assert all("\n" not in line and "services.yaml" in line for line in complaints())


async def test_switched_links_are_followed(
    start_backend: StartBackend, watching: Callable[..., Awaitable[RunningGateway]], services: Services
) -> None:
    """As in a pod's ConfigMap, where the outer link never changes."""
    one, two = await start_backend("one"), await start_backend("two")
    services.switch(entry(one))
    gateway = await watching(entry(one))
    for text, expected in ((entry(two), ["two"]), (entry(one) + entry(two), ["one", "two"]), (entry(one), ["one"])):
        services.switch(text)
        await gateway.until(lambda expected=expected: sorted(names(gateway)) == expected)


async def test_reloads_under_load_fail_no_request(
    start_backend: StartBackend, watching: Callable[..., Awaitable[RunningGateway]], services: Services
) -> None:
    """A hundred changes: added, removed, moved, reweighted, invalid."""
    switches = {"ttft": 0.003, "rate": 1000.0}
    here, there, other = [await start_backend(name, **switches) for name in ("here", "there", "other")]
    states = [
        (entry(here, "a") + entry(other, "b"), {"a": here.url, "b": other.url}),
        (entry(there, "a") + entry(other, "b"), {"a": there.url, "b": other.url}),
        (entry(there, "a", weight=5), {"a": there.url}),
        (entry(here, "a", models="[qwen]"), {"a": here.url}),
        (entry(here, "a") + "b: {url", None),
        (entry(other, "b", kind="llm"), {"b": other.url}),
    ]
    gateway = await watching(states[0][0])
    failures: list[str] = []
    answered = 0
    stop = asyncio.Event()

    async def client(number: int) -> None:
        nonlocal answered
        while not stop.is_set():
            answer = await gateway.chat("qwen", stream=number % 2 == 0)
            whole = answer.text.endswith("data: [DONE]\n\n") if number % 2 == 0 else "token3" in answer.text
            if answer.status_code != 200 or not whole:
                failures.append(answer.text)
            answered += 1

    with structlog.testing.capture_logs() as logs:
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(client(number))
            for reload in range(1, RELOADS + 1):
                text, expected = states[reload % len(states)]
                before, rejected = answered, sum(line["event"].startswith("services file invalid") for line in logs)
                (services.switch if reload % 3 == 0 else services.replace)(text)
                if expected is None:
                    await gateway.until(
                        lambda rejected=rejected: (
                            sum(line["event"].startswith("services file invalid") for line in logs) > rejected
                        )
                    )
                else:
                    await gateway.until(
                        lambda expected=expected: (
                            {one.name: one.target.url for one in gateway.context.backends} == expected
                        )
                    )
                # Work goes on between any two changes.
                await gateway.until(lambda before=before: answered >= before + CLIENTS)
            stop.set()
    assert failures == []
    assert answered >= RELOADS * CLIENTS
    assert all(backend.traffic.in_flight == 0 for backend in gateway.context.backends)


async def test_services_by_dns(
    monkeypatch: pytest.MonkeyPatch,
    start_backend: StartBackend,
    watching: Callable[..., Awaitable[RunningGateway]],
    services: Services,
) -> None:
    """Replicas are added and removed with their entry; a change of weight does not resolve them again."""
    resolver = FakeResolver(monkeypatch)
    first = await start_backend("first", host="127.0.0.2")
    await start_backend("second", host="127.0.0.3", port=first.port)
    single = await start_backend("single")
    resolver.answers["pool"] = ["127.0.0.2", "127.0.0.3"]
    pool = f"pool: {{url: 'http://pool:{first.port}', dns: true, weight: WEIGHT}}\n"
    gateway = await watching(entry(single) + pool.replace("WEIGHT", "1"))
    assert names(gateway) == ["single", "pool", "pool-2"]
    resolver.answers["pool"] = GONE
    services.replace(entry(single) + pool.replace("WEIGHT", "2"))
    await gateway.until(lambda: gateway.backend("pool").target.weight == 2)
    resolver.answers["pool"] = ["127.0.0.3"]
    await gateway.until(lambda: names(gateway) == ["single", "pool"])
    services.replace(entry(single))
    await gateway.until(lambda: names(gateway) == ["single"])
    asked = resolver.asked["pool"]
    services.replace(entry(single) + "\n# still the same\n")
    services.replace(entry(single, weight=4))
    await gateway.until(lambda: gateway.backend("single").target.weight == 4)
    assert resolver.asked["pool"] == asked


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: http://x:1\na: http://y:1", "duplicate key 'a'"),
        ("a: 7", "a: expected a URL or fields as in"),
        ("a b: http://x", "invalid backend name 'a b'"),
        ("1: http://x", "invalid backend name 1"),
        ("a: {kind: llm}", "a: url: Field required"),
        ("a: {url: http://x, kind: chat}", "a: kind: Input should be 'llm'"),
        ("a: {url: http://x, weight: 0}", "a: weight: Input should be greater"),
        ("a: {url: http://x, models: qwen}", "a: models: "),
        ("a: {url: http://x, optional: true}", "a: optional requires dns"),
        ("a: {url: 'http://user@x'}", "must have no user"),
        ("- a", "has no backends"),
    ],
)
def test_error_names_file_backend_and_field(services: Services, text: str, says: str) -> None:
    services.replace(text)
    with pytest.raises(SettingsError) as caught:
        read_services(services.path)
    assert says in str(caught.value)
    assert str(services.path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_has_all_fields_of_services(services: Services) -> None:
    services.replace(
        "a: http://10.0.0.1:8000/v1\nb: {url: https://b, kind: llm, models: [o/m, n], weight: 2.5}\n"
        "c: {url: http://c:1, dns: true, optional: true}"
    )
    a, b, c = read_services(services.path)
    assert (a.url, a.weight) == ("http://10.0.0.1:8000", 1.0)
    assert (b.kind, b.models, b.weight, b.tls, b.port) == ("llm", ("o/m", "n"), 2.5, True, 443)
    assert (c.by_dns, c.optional) == (True, True)


async def test_invalid_file_prevents_the_start(
    watching: Callable[..., Awaitable[RunningGateway]],
) -> None:
    with pytest.raises(SettingsError, match="has no backends"):
        await watching("")


async def test_name_in_services_and_file_is_an_error(
    start_backend: StartBackend, watching: Callable[..., Awaitable[RunningGateway]]
) -> None:
    one, two = await start_backend("one"), await start_backend("two")
    gateway = await watching(entry(one), services=f"two={two.url}")
    assert names(gateway) == ["two", "one"]
    with pytest.raises(SettingsError, match="two: name already used in SERVICES"):
        await watching(entry(two), services=f"two={two.url}")


def test_file_replaces_the_default_of_services(tmp_path: Path) -> None:
    file = tmp_path / "services.yaml"
    assert GatewaySettings(services_file=file).listed_services == ()
    assert len(GatewaySettings(services_file=file, services="a=http://b").listed_services) == 1
    assert len(GatewaySettings().listed_services) == 5
