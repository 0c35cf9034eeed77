"""`tempsamp`: one tree, light until a command runs, and a shell can complete it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer

import tempsamp

ROOT = Path(__file__).resolve().parents[2]
TEMPSAMP = Path(sys.executable).with_name("tempsamp")
HEAVY = ("torch", "vllm", "transformers", "matplotlib", "scipy", "fastapi", "av", "decord")
HELP = """
import sys, tempsamp
sys.argv = ["tempsamp", *sys.argv[1:], "--help"]
try:
    tempsamp.main()
except SystemExit as end:
    heavy = [name for name in {heavy} if name in sys.modules]
    sys.stderr.write(" ".join(heavy))
    sys.exit(end.code)
"""


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


@pytest.mark.parametrize("names", PATHS, ids=" ".join)
def test_help_needs_nothing_heavy(names: tuple[str, ...]) -> None:
    shown = subprocess.run(
        [sys.executable, "-c", HELP.format(heavy=HEAVY), *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert f"Usage: {' '.join(('tempsamp', *names))}" in shown.stdout
    assert shown.stderr == ""


def completed(line: str) -> list[str]:
    """What bash offers for the last word of a line."""
    environ = {
        **os.environ,
        "_TEMPSAMP_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    answer = subprocess.run(
        [TEMPSAMP], env=environ, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.stderr == ""
    return answer.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
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
    ],
)
def test_shell_completes(line: str, offered: list[str]) -> None:
    assert completed(line) == offered


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
