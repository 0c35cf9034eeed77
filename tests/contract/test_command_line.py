"""`tempsamp`: one tree, light until a command runs, and a shell can complete it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer

import tempsamp

ROOT = Path(__file__).resolve().parents[2]
TEMPSAMP = Path(sys.executable).with_name("tempsamp")
HEAVY = ("torch", "vllm", "transformers", "matplotlib", "scipy", "fastapi", "av", "decord")
FORKS = """
import json, os, sys, tempsamp
import common.config, httpx, rich.console, typer.rich_utils
folder, heavy, calls = sys.argv[1], *map(json.loads, sys.argv[2:])
for number, (words, environ) in enumerate(calls):
    if os.fork() == 0:
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}/{number}.{name}", os.O_CREAT | os.O_WRONLY), descriptor)
        os.environ.update(environ)
        sys.argv = ["tempsamp", *words]
        try:
            tempsamp.main()
        finally:
            sys.stderr.write(" ".join(name for name in heavy if name in sys.modules))
    os.wait()
"""
"""Python that runs commands, each in a fork of its own; what most of them import is shared."""


def paths(command: Any, *names: str) -> Iterator[tuple[str, ...]]:
    """The words of every command, groups included."""
    yield names
    if isinstance(command, tempsamp.Leaf):
        command = command.loaded()
    for name, below in getattr(command, "commands", {}).items():
        yield from paths(below, *names, name)


PATHS = list(paths(typer.main.get_command(tempsamp.app)))


def test_every_command_is_in_the_tree() -> None:
    assert {" ".join(names) for names in PATHS} == {
        "",
        "audit",
        "compare",
        "dash",
        "data",
        "data convert",
        "data import-pt",
        "data inspect",
        "data preprocess",
        "data split",
        "demo",
        "doctor",
        "drain",
        "eval",
        "eval score",
        "ground",
        "learner",
        "plan",
        "reframe",
        "reframe center",
        "reframe check",
        "reframe qwen",
        "reframe score",
        "reframe show",
        "replay",
        "reward",
        "reward serve",
        "rollout",
        "rollout serve",
        "runs",
        "status",
    }


Written = tuple[str, str]
"""On standard output, and on standard error, where heavy modules are named that were imported."""


def written(
    folder: Path, calls: Sequence[tuple[Sequence[str], Mapping[str, str]]]
) -> list[Written]:
    """What each of some commands writes; `calls`: words and what is added to the environment."""
    given = [str(folder), json.dumps(HEAVY), json.dumps(calls)]
    subprocess.run([sys.executable, "-c", FORKS, *given], cwd=ROOT, check=True, timeout=120)
    files = [
        [folder / f"{number}.{name}" for name in ("out", "err")] for number in range(len(calls))
    ]
    return [(out.read_text(), err.read_text()) for out, err in files]


@pytest.fixture(scope="module")
def helps(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Written]:
    """Path → what `--help` writes."""
    calls = [((*names, "--help"), {}) for names in PATHS]
    return dict(zip(PATHS, written(tmp_path_factory.mktemp("help"), calls), strict=True))


@pytest.mark.parametrize("names", PATHS, ids=" ".join)
def test_help_needs_nothing_heavy(
    names: tuple[str, ...], helps: dict[tuple[str, ...], Written]
) -> None:
    text, errors = helps[names]
    assert f"Usage: {' '.join(('tempsamp', *names))}" in text
    assert errors == ""


COMPLETED = [
    ("tempsamp da", ["dash", "data"]),
    ("tempsamp status --js", ["--json"]),
    ("tempsamp drain --no-w", ["--no-wait"]),
    ("tempsamp data con", ["convert"]),
    ("tempsamp data convert --inp", ["--input"]),
    ("tempsamp eval sc", ["score"]),
    ("tempsamp eval --bench-d", ["--bench-dir"]),
    ("tempsamp eval --mode mixed_o", ["mixed_oracle"]),
    ("tempsamp eval score --part", ["--partial"]),
    ("tempsamp rollout serve --conf", ["--config"]),
    ("tempsamp plan --learner", ["--learner-gpus"]),
    ("tempsamp reframe che", ["check"]),
    ("tempsamp reframe center --vid", ["--video-dir"]),
]
"""A line that is typed → what bash offers for its last word."""


def asks(line: str) -> dict[str, str]:
    """The environment in which bash asks how a line may go on."""
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    return {"_TEMPSAMP_COMPLETE": "complete_bash", **asked}


@pytest.fixture(scope="module")
def completions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    """Line → what is offered."""
    lines = [line for line, _ in COMPLETED]
    texts = written(tmp_path_factory.mktemp("completed"), [((), asks(line)) for line in lines])
    return dict(zip(lines, texts, strict=True))


@pytest.mark.parametrize(("line", "offered"), COMPLETED)
def test_shell_completes(line: str, offered: list[str], completions: dict[str, Written]) -> None:
    text, errors = completions[line]
    assert text.split() == offered
    assert errors == ""


def test_the_installed_command_completes() -> None:
    answer = subprocess.run(
        [TEMPSAMP],
        env={**os.environ, **asks("tempsamp da")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (answer.stdout.split(), answer.stderr) == (["dash", "data"], "")


def test_completion_can_be_installed(tmp_path: Path) -> None:
    # A list, so that bash stays the parent that is looked for.
    subprocess.run(
        ["bash", "-c", f"{TEMPSAMP} --install-completion; true"],
        env={**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/bash"},
        cwd=ROOT,
        check=True,
        timeout=60,
    )
    assert "tempsamp" in (tmp_path / ".bashrc").read_text()


def test_version_is_the_package_s() -> None:
    shown = subprocess.run(
        [TEMPSAMP, "--version"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert shown.stdout == f"tempsamp {metadata.version('tempsamp')}\n"


@pytest.mark.parametrize("missing", ["--bench", "--video-root", "--out"])
def test_eval_says_what_it_wants(missing: str) -> None:
    given = {"--bench": "charades-sta", "--video-root": ".", "--out": "runs/never"}
    words = [word for pair in given.items() if pair[0] != missing for word in pair]
    refused = subprocess.run(
        [TEMPSAMP, "eval", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"tempsamp: {missing}: found nothing, wanted")


def test_a_mistyped_command_names_the_nearest() -> None:
    refused = subprocess.run(
        [TEMPSAMP, "eval", "scor"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert refused.returncode == 2
    assert "score" in refused.stderr
