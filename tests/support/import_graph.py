"""The import graph of a source tree, read from its syntax: nothing is imported, TYPE_CHECKING blocks count."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class Import:
    """One import edge: a module of ours and the dotted name that it imports."""

    module: str
    target: str


def modules(root: Path, programs: Iterable[str]) -> dict[str, Path]:
    """Map the dotted name of every module below `programs` to its file; a package has the name of its folder."""
    found = {}
    for program in programs:
        for path in sorted((root / program).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(root: Path, path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, at any depth of its syntax tree."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join((*base, *(node.module or "").split("."))).rstrip(".")
            yield from (f"{source}.{alias.name}" for alias in node.names)


def edges(root: Path, programs: Iterable[str]) -> list[Import]:
    """List all import edges of the programs' modules."""
    return sorted(
        Import(name, target)
        for name, path in modules(root, programs).items()
        for target in set(imports_of(root, path))
    )  # fmt: skip


def is_within(name: str, packages: Iterable[str]) -> bool:
    """Whether a dotted name is one of `packages` or below one of them."""
    return any(name == package or name.startswith(package + ".") for package in packages)


def disallowed(root: Path, program: str, allowed: Mapping[str, str]) -> list[Import]:
    """List imports within `program` that its table does not allow.

    `allowed` maps the first name below the program to the names that it may import, separated by blanks; `*` is any.
    A name that the table lacks may import nothing.
    """
    wrong = []
    for edge in edges(root, [program]):
        importer, target = edge.module.split("."), edge.target.split(".")
        if len(importer) < 2 or target[0] != program or len(target) < 2 or target[1] == importer[1]:
            continue
        permitted = allowed.get(importer[1], "").split()
        if target[1] not in permitted and permitted != ["*"]:
            wrong.append(edge)
    return wrong


def cycles(root: Path, programs: Iterable[str]) -> list[list[str]]:
    """List the import cycles between modules, by Tarjan's algorithm for strongly connected components."""
    names = modules(root, programs)
    graph: dict[str, set[str]] = {name: set() for name in names}
    for edge in edges(root, programs):
        target = edge.target if edge.target in names else edge.target.rpartition(".")[0]
        if target in names and target != edge.module:
            graph[edge.module].add(target)
    return sorted(sorted(group) for group in _strongly_connected(graph) if len(group) > 1)


def _strongly_connected(graph: Mapping[str, set[str]]) -> Iterator[list[str]]:
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    for start in graph:
        if start in order:
            continue
        work = [(start, iter(sorted(graph[start])))]
        order[start] = low[start] = len(order)
        stack.append(start)
        while work:
            node, successors = work[-1]
            for successor in successors:
                if successor not in order:
                    order[successor] = low[successor] = len(order)
                    stack.append(successor)
                    work.append((successor, iter(sorted(graph[successor]))))
                    break
                if successor in stack:
                    low[node] = min(low[node], order[successor])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == order[node]:
                    group = stack[stack.index(node) :]
                    del stack[stack.index(node) :]
                    yield group
