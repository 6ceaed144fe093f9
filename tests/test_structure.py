"""How the code is laid out: file sizes, who may import whom, and what may stand in no file."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = 400
PROGRAMS = {"gateway", "registry", "services", "quickstart", "chatui", "bench"}
# What routing must not know: it decides from state that it is handed.
IO_MODULES = {
    "asyncio", "aiohttp", "fastapi", "h11", "httpcore", "httpcore2", "httptools", "httpx", "httpx2", "os", "pathlib",
    "requests", "select", "selectors", "socket", "ssl", "starlette", "subprocess", "threading", "urllib3", "uvicorn",
    "uvloop",
}  # fmt: skip
# Put together here, so that this file does not hold what it looks for.
REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("registry", "npmjs", "org"),
        ("registry", "yarnpkg", "com"),
        ("index", "crates", "io"),
        ("rubygems", "org"),
        ("anaconda", "org"),
    )
)
# Caches below an image's root are no machine's.
MACHINE_PATHS = re.compile(r"(?<![\w.$}/-])/(?:work|root)/(?!\.cache\b|\.npm\b)[\w.-]")


def tracked(*patterns: str) -> list[Path]:
    """The files that git tracks or would track, as paths below the root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return sorted(ROOT / name for name in set(listed.split("\0")) if name and (ROOT / name).is_file())


def text_of(path: Path) -> str:
    """The file's text; empty for a binary file."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def imports_of(path: Path) -> Iterator[str]:
    """The full names of the modules that a file imports, wherever in it."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(text_of(path), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *(node.module or "").split("."))).rstrip(".")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_in(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def named(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_no_python_file_is_long() -> None:
    """One subject per file; what does not fit into 400 lines is two."""
    long = {path: len(text_of(path).splitlines()) for path in tracked("*.py")}
    assert {str(path.relative_to(ROOT)): n for path, n in long.items() if n > MOST_LINES} == {}


@pytest.mark.parametrize("name", ["utils", "util", "helpers", "helper", "manager", "common", "misc"])
def test_modules_are_named_for_what_they_hold(name: str) -> None:
    """These names hold anything, and soon do."""
    assert named([path for path in tracked("*.py") if path.stem == name or name in path.parts]) == []


def test_kit_stands_alone() -> None:
    """The frame knows no program that stands on it."""
    wrong = [
        (path.name, module) for path in tracked("kit/*.py") for module in imports_of(path) if is_in(module, *PROGRAMS)
    ]
    assert wrong == []


SERVICES = sorted(path.name for path in (ROOT / "services").iterdir() if (path / "__init__.py").exists())


@pytest.mark.parametrize("service", SERVICES)
def test_services_know_only_the_frame(service: str) -> None:
    """A service is an image of its own: it imports itself and kit, no other program."""
    others = {f"services.{other}" for other in SERVICES if other != service} | (PROGRAMS - {"services"})
    wrong = [
        (str(path.relative_to(ROOT)), module)
        for path in tracked(f"services/{service}/*.py")
        for module in imports_of(path)
        if is_in(module, *others)
    ]
    assert wrong == []


@pytest.mark.parametrize("program", ["gateway", "registry", "chatui"])
def test_programs_know_only_the_frame(program: str) -> None:
    """Gateway and registry talk to the others over HTTP only; the step before Chat UI talks to nobody."""
    others = PROGRAMS - {program}
    wrong = [
        (str(path.relative_to(ROOT)), module)
        for path in tracked(f"{program}/*.py")
        for module in imports_of(path)
        if is_in(module, *others)
    ]
    assert wrong == []


def test_no_program_imports_tests() -> None:
    """What ships does not need what does not."""
    shipped = tracked("kit/*.py", *(f"{program}/*.py" for program in PROGRAMS - {"bench"}))
    wrong = [
        (str(path.relative_to(ROOT)), module)
        for path in shipped
        for module in imports_of(path)
        if is_in(module, "tests", "pytest")
    ]
    assert wrong == []


def test_routing_decides_without_io() -> None:
    """The choice of a backend, and what the care for requests goes by, is tested without a socket or a clock."""
    decisions = (
        "load", "pace", "prefixes", "condition", "breaker", "deadlines", "retry_budget", "deaths", "tries", "head",
        "known_heads", "engine_metrics", "exposition", "transcript", "seam",
    )  # fmt: skip
    pure = tracked("gateway/routing/*.py", *(f"gateway/{name}.py" for name in decisions))
    assert len(pure) > len(decisions) + 1
    wrong = [(str(path.relative_to(ROOT)), module) for path in pure for module in imports_of(path)]
    assert [(path, module) for path, module in wrong if is_in(module, *IO_MODULES, "random", "time")] == []


def test_no_paths_of_one_machine() -> None:
    """What only exists where it was written breaks everywhere else."""
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if MACHINE_PATHS.search(line)
    ]
    assert wrong == []


def test_no_package_registry_is_named() -> None:
    """Whoever installs decides where packages come from; PyTorch's own index of CPU builds is no such registry."""
    wrong = [
        f"{path.relative_to(ROOT)}: {host}"
        for path in tracked()
        for host in REGISTRY_HOSTS
        if re.search(rf"(?<![\w-]){re.escape(host)}(?![\w-])", text_of(path))
    ]
    assert wrong == []


LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


@pytest.mark.parametrize("lock", LOCKS or [None], ids=lambda path: path.name if path else "none yet")
def test_requirements_are_pinned_with_hashes(lock: Path | None) -> None:
    """Each requirement is one exact version with the digests of its files."""
    if lock is None:
        pytest.skip("requirements/ holds no lock yet")
    lines = re.sub(r"\\\n\s*", " ", text_of(lock)).splitlines()
    requirements = [line for line in lines if line.strip() and not line.lstrip().startswith(("#", "-"))]
    assert requirements
    pinned = re.compile(r"[\w.\[\]-]+==[^\s;]+(?: ; .+?)? .*--hash=sha256:[0-9a-f]{64}")
    assert [line for line in requirements if not pinned.match(line)] == []
