"""Nothing of ours runs what it reads: no pickle, eval, exec, shell, or load that can run code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    ROOT / "tempsamp.py",
    *sorted(p for house in ("common", "services", "jobs") for p in (ROOT / house).rglob("*.py")),
]
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
LOADS = {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "np.load", "numpy.load"}
EXCEPTIONS = {
    "jobs/data/import_pt.py: import pickle": "the name of torch's refusal; nothing is unpickled",
}
"""What was found, and why it may stay."""


def name_of(node: ast.expr) -> str:
    """Dotted name of what is called; empty when it has none."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}".lstrip(".")
    return ""


def unsafe(source: str) -> Iterator[str]:
    """What in a source could run what it reads."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield f"import {node.module}"
        elif isinstance(node, ast.Call):
            yield from _unsafe_call(node)


def _unsafe_call(node: ast.Call) -> Iterator[str]:
    name = name_of(node.func)
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if name in CALLS | LOADS:
        yield name
    if name == "torch.load" and not _is_true(given.get("weights_only")):
        yield "torch.load without weights_only=True"
    if _is_true(given.get("shell")):
        yield f"{name} with shell=True"
    for option in ("trust_remote_code", "allow_pickle"):
        if option in given and not _is_false(given[option]):
            yield f"{name} with {option}"
    if name.endswith(("broadcast_object_list", "gather_object", "scatter_object_list")):
        yield f"{name}, which pickles"


def _is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", "import pickle"),
        ("def f():\n    from pickle import loads", "import pickle"),
        ("eval('1')", "eval"),
        ("exec(text)", "exec"),
        ("import yaml\nyaml.load(text)", "yaml.load"),
        ("np.load(path)", "np.load"),
        ("torch.load(path)", "torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "torch.load without weights_only=True"),
        ("subprocess.run(words, shell=True)", "subprocess.run with shell=True"),
        ("AutoModel.from_pretrained(m, trust_remote_code=yes)", "trust_remote_code"),
        ("dist.all_gather_object(a, b)", "which pickles"),
    ],
)
def test_what_is_unsafe_is_found(source: str, found: str) -> None:
    assert [line for line in unsafe(source) if line.endswith(found) or found in line]


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path, weights_only=True)",
        "re.compile(text)",
        "yaml.safe_load(text)",
        "model.eval()",
        "AutoModel.from_pretrained(m, trust_remote_code=False)",
    ],
)
def test_what_is_safe_is_not(source: str) -> None:
    assert list(unsafe(source)) == []


def test_nothing_of_ours_runs_what_it_reads() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {what}"
        for path in SOURCES
        for what in unsafe(path.read_text(encoding="utf-8"))
    }
    assert found == set(EXCEPTIONS)
