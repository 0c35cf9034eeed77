"""The shape of the house: no circle of imports between files, no folder a newcomer cannot take in.

Both hold for every import anywhere in a file, also those inside a function or for types alone.
"""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOUSES = ("common", "services", "jobs")
MAX_ENTRIES = 14
MORE_ENTRIES = {"services/learner": 20, "docs": 16, "jobs": 16, "common": 15}
"""The learner is one loop read downwards, and its files are that loop's words; pages of docs have a
table of contents."""
FOLDERS = sorted(
    str(folder.relative_to(ROOT))
    for house in (*HOUSES, "tests", "docs", "deploy")
    for folder in (ROOT / house, *(ROOT / house).rglob("*"))
    if folder.is_dir()
    and not {"__pycache__", "golden"} & set(folder.parts)
    and "docs/bench/compare/" not in f"{folder}/"  # a file a run, read by a program
)
NOT_SHOWN = {"__init__.py", "__pycache__", "README.md"}
"""What makes a folder, and what introduces it."""


def modules() -> dict[str, Path]:
    """Dotted name → file, packages by the name of their folder."""
    paths = [path for house in HOUSES for path in (ROOT / house).rglob("*.py")]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


def imports() -> dict[str, set[str]]:
    """Module → modules of ours that it imports."""
    known = modules()
    return {name: set(_imported(path, known)) - {name} for name, path in known.items()}


def _imported(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in names]
        else:
            continue
        yield from (name for name in names if name in known)


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Some circle of a graph, its first module again at its end; empty without one."""
    done: set[str] = set()

    def search(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for target in sorted(graph[name]):
            if found := search(target, [*trail, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(graph) if (found := search(name, []))), [])


def test_a_circle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}}
    assert circle(graph) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_files_do_not_import_in_circles() -> None:
    graph = imports()
    assert any(graph.values())
    assert circle(graph) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_shows_few_entries(folder: str) -> None:
    entries = {path.name for path in (ROOT / folder).iterdir() if path.name not in NOT_SHOWN}
    assert len(entries) <= MORE_ENTRIES.get(folder, MAX_ENTRIES), sorted(entries)
