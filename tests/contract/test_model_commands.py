"""Commands that load a model: a wrong one is one line and exit code 2, before anything heavy."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fixtures.clips import make_clip
from tests.fixtures.servers import hub as hubs
from tests.fixtures.servers.hub import Hub

ROOT = Path(__file__).resolve().parents[2]
RUN_FILE = str(ROOT / "deploy/configs/demo.toml")
PROGRAM = """
import sys, tempsamp
try:
    tempsamp.main()
finally:
    print("imported:", *{"torch", "vllm", "transformers"} & sys.modules.keys())
"""


@dataclass(frozen=True)
class Command:
    """One of those that load a model."""

    arguments: Sequence[str]
    option: Sequence[str]
    """How the model is named; the last one ends with it."""
    knob: str

    def line(self, model: str, *, folder: Path) -> list[str]:
        """Its arguments for a model, files of `folder` in place of FOLDER."""
        option = [*self.option[:-1], self.option[-1] + model]
        return [text.replace("FOLDER", str(folder)) for text in (*self.arguments, *option)]


SET = ("--set", "shared.model=")
COMMANDS = {
    "rollout": Command(("rollout", "serve", "--config", RUN_FILE), SET, "shared.model"),
    "learner": Command(
        ("learner", "--config", RUN_FILE, "--set", "learner.run_dir=FOLDER/run"),
        SET,
        "shared.model",
    ),
    "eval": Command(
        ("eval", "--bench", "charades-sta", "--video-root", "FOLDER", "--out", "FOLDER/out"),
        ("--model", ""),
        "--model",
    ),
    "ground": Command(("ground", "FOLDER/clip.mp4", "a query"), ("--model", ""), "--model"),
}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with hubs.serving() as running:
        running.add("tiny/lora", {"adapter_config.json": b"{}", "adapter_model.safetensors": b""})
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    make_clip(folder / "clip.mp4", num_frames=8)
    return folder


@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("FOLDER", "no config.json in FOLDER, wanted a model folder"),
        ("tiny/lora", "an adapter (adapter_config.json, no config.json)"),
        ("tiny/none", "no folder tiny/none in"),
    ],
    ids=["folder", "adapter of the hub", "unknown id"],
)
def test_a_wrong_model_is_one_line_and_nothing_heavy_is_imported(
    model: str, said: str, command: Command, hub: Hub, folder: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command.line(model, folder=folder)],
        cwd=ROOT,
        env=os.environ | hub.environ(folder / "home"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    line = ended.stderr.splitlines()[-1]
    wanted = f"tempsamp: {command.knob}: found {said}".replace("FOLDER", str(folder))
    assert line.startswith(wanted)
    assert ended.stdout.splitlines()[-1] == "imported:"
    assert "Traceback" not in ended.stderr


def test_a_model_that_is_no_choice_of_the_command_line_names_the_run_file(
    hub: Hub, folder: Path
) -> None:
    run_file = folder / "run.toml"
    run_file.write_text(
        '[shared]\nrun_id = "x"\nmodel = "tiny/none"\n'
        '[learner]\nrows = "rows.jsonl"\nrun_dir = "run"\nsteps = 1\n'
    )
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "tempsamp", "ground", str(folder / "clip.mp4"), "a query"),
            *("--config", str(run_file)),
        ],
        cwd=ROOT,
        env=os.environ | hub.environ(folder / "home"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "tempsamp: shared.model: found no folder tiny/none in" in ended.stderr
