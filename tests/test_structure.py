"""The layers of the code: which package may import which, no cycles, pure packages, small modules and folders."""

import statistics
from collections import Counter
from pathlib import Path

import pytest

from tests.support.import_graph import cycles, disallowed, edges, is_within, modules

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("kit", "gateway", "registry", "services", "quickstart", "chatui", "edge")
ALL = (*SHIPPED, "bench", "tests")
MAX_LINES = 400
MAX_MEDIAN_LINES = 150
MAX_MODULES = 14

# What each package may import within its own program, by the first name below the program; `*` is everything.
ALLOWED = {
    "gateway": {
        "http1": "",
        "endpoints": "",
        "discovery": "",
        "streams": "endpoints",
        "upstream": "http1 discovery",
        "backends": "upstream discovery",
        "health": "backends",
        "routing": "backends endpoints",
        "bodies": "routing endpoints http1",
        "telemetry": "backends",
        "relay": "http1 endpoints streams upstream backends routing bodies telemetry",
        "workers": "backends telemetry",
        "api": "backends endpoints health routing bodies http1",
        "settings": "*",
        "app": "*",
        "__main__": "*",
    },
    "registry": {
        "store": "",
        "models": "store",
        "safety": "store models",
        "hub": "",
        "download": "store models safety hub",
        "api": "store models download",
        "bundle": "store models safety",
        "upkeep": "store models download bundle",
        "commands": "*",
        "settings": "*",
        "open_store": "*",
        "app": "*",
        "__main__": "*",
    },
    "kit": {
        "errors": "",
        "logs": "",
        "version": "",
        "units": "",
        "config": "errors",
        "net": "",
        "web": "errors logs version config net",
        "hub": "config net",
        "model_files": "config net hub units",
        "service": "errors config net web model_files",
        "tools": "errors config model_files service",
    },
}  # fmt: skip
# What each program may import of the others.
PROGRAMS = {
    "kit": "",
    "gateway": "kit",
    "registry": "kit",
    "services": "kit",
    "chatui": "kit",
    "edge": "kit",
    "quickstart": "kit registry services gateway chatui",
    "bench": " ".join((*SHIPPED, "tests")),
}

# Packages, and single modules of others, that decide from the state they are given.
PURE = (
    "gateway.http1",
    "gateway.endpoints",
    "gateway.streams",
    "gateway.routing",
    "gateway.backends",
    "gateway.health.engine_metrics",
    "gateway.relay.failover",
    "gateway.relay.retry_budget",
    "gateway.telemetry.merge_exposition",
    "kit.hub.listing",
    "kit.units",
    "registry.api.hub_json",
    "registry.api.hub_search",
    "registry.models.model_card",
    "registry.safety.remote_code",
)
IO_MODULES = (
    "aiohttp", "asyncio", "boto3", "fastapi", "h11", "httpcore", "httpcore2", "httptools", "httpx", "httpx2", "os",
    "pathlib.Path", "random", "requests", "select", "selectors", "shutil", "socket", "sqlite3", "ssl", "starlette",
    "subprocess", "tempfile", "threading", "time", "urllib.request", "urllib3", "uvicorn", "uvloop",
)  # fmt: skip


@pytest.mark.parametrize("program", ALLOWED)
def test_packages_import_only_what_their_row_lists(program: str) -> None:
    """Imports for type checking count: a cycle that only the type checker sees is still a cycle for the reader."""
    assert disallowed(ROOT, program, ALLOWED[program]) == []


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_import_only_what_their_row_lists(program: str) -> None:
    """Programs are separate containers: they share `kit` and talk over HTTP."""
    allowed = (program, *PROGRAMS[program].split())
    wrong = [
        edge for edge in edges(ROOT, [program]) if is_within(edge.target, ALL) and not is_within(edge.target, allowed)
    ]
    assert wrong == []


SERVICES = sorted(path.parent.name for path in (ROOT / "services").glob("*/__init__.py"))


@pytest.mark.parametrize("service", SERVICES)
def test_services_do_not_import_each_other(service: str) -> None:
    """Each service is an image of its own."""
    others = [f"services.{other}" for other in SERVICES if other != service]
    assert [edge for edge in edges(ROOT, [f"services/{service}"]) if is_within(edge.target, others)] == []


def test_the_import_graph_has_no_cycle() -> None:
    """A reader can start at the leaves and never has to know two modules at once."""
    assert cycles(ROOT, SHIPPED) == []


def test_pure_packages_do_no_io() -> None:
    """A test of a pure package needs no socket, no clock, no file."""
    files = modules(ROOT, {name.split(".")[0] for name in PURE})
    assert all(any(is_within(name, [package]) for name in files) for package in PURE)
    pure = [edge for edge in edges(ROOT, {name.split(".")[0] for name in PURE}) if is_within(edge.module, PURE)]
    assert [edge for edge in pure if is_within(edge.target, IO_MODULES)] == []


def test_no_module_is_long() -> None:
    """One subject per module, and a median that a reader takes in at once."""
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules(ROOT, ALL).items()}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}
    assert statistics.median(lines[name] for name in modules(ROOT, SHIPPED)) < MAX_MEDIAN_LINES


def test_no_folder_has_many_modules() -> None:
    """A folder's content fits one sentence and one screen; `__init__` and `__main__` are not counted."""
    count = Counter(
        str(path.parent.relative_to(ROOT))
        for path in modules(ROOT, ALL).values()
        if path.name not in ("__init__.py", "__main__.py")
    )
    assert {folder: n for folder, n in count.items() if n > MAX_MODULES} == {}


def test_an_import_against_the_table_is_found(tmp_path: Path) -> None:
    """The test of the test: plain, nested, relative and type-only imports are each found in a tree that has them."""
    for name, text in {
        "gateway/http1/headers.py": "import gateway.relay.exchange\n",
        "gateway/routing/router.py": "def choose():\n    from ..relay import exchange\n",
        "gateway/streams/sse.py": "if TYPE_CHECKING:\n    from gateway.app import x\n",
        "gateway/relay/exchange.py": "from gateway.http1.headers import Head\n",
        "gateway/newcomer/module.py": "from gateway.endpoints import Endpoint\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = {(edge.module, edge.target) for edge in disallowed(tmp_path, "gateway", ALLOWED["gateway"])}
    assert found == {
        ("gateway.http1.headers", "gateway.relay.exchange"),
        ("gateway.routing.router", "gateway.relay.exchange"),
        ("gateway.streams.sse", "gateway.app.x"),
        ("gateway.newcomer.module", "gateway.endpoints.Endpoint"),
    }
    assert cycles(tmp_path, ["gateway"]) == [["gateway.http1.headers", "gateway.relay.exchange"]]
