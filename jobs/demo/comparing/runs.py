"""Compare methods over seeds: `make compare`, `python -m jobs.demo.compare_methods`.

Each run is the whole demo (`jobs.demo.run`: real Redis, reward, vLLM and learner processes) and
leaves a `runs/compare-<method>-<steps>-<seed>/summary.json`; `jobs.demo.method_statistics`
aggregates them. A run that is there with equal settings is not repeated: an interrupted comparison
goes on where it stopped.

THE RULE, written on 2026-11-21 before any of these results existed:

- Start: `deploy/tiny-qwen3vl` as shipped, for every run.
- Training: `deploy/configs/demo.toml` as shipped, its number of steps, the train split. Methods
  differ in `shared.strategy` alone: grpo, mixed (true answers injected as they are), tempsamp (true
  answers injected, rewards shaped) and sft, a control that learns from the true answers alone.
- Seeds: 0, 1, 2, 3, 4; every method with every seed. A seed sets the order of the data and all
  sampling.
- Scored: the weights of the last step; no checkpoint is picked, no run is left out.
- Split: test. Start checkpoint, learning rate, steps and everything else were chosen on the
  validation split or before; nothing was chosen on test.
- Figures: `jobs.demo.method_statistics.FIGURES`, greedy and sampled, mean and standard deviation
over seeds. - Differences: paired by seed, with the 95 % interval of Student's t. An interval that
holds zero is
  a tie. Intervals are not corrected for the number of figures looked at.
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from common import config
from common.errors import ConfigError, TempSampError
from common.queue.disk import check_file, check_folder, replace_text, write_file
from jobs.demo.course import METHODS
from jobs.demo.method_statistics import Comparison, compare, markdown, tables
from jobs.demo.run import CONFIG, ROOT
from jobs.local.processes import Child, Children

DEFAULT_METHODS = "grpo,mixed,tempsamp,sft"
DEFAULT_SEEDS = "0,1,2,3,4"
SPLIT = "test"
START = ROOT / "deploy/tiny-qwen3vl/model.safetensors"
OUT = ROOT / "runs" / "compare"
SETTINGS_FILE = "compare_settings.json"
POLL_S = 0.5

console = Console()


@dataclass(frozen=True)
class Settings:
    """What decides the result of one run; saved beside its summary."""

    method: str
    steps: int
    seed: int
    split: str
    start_sha256: str
    config_sha256: str

    @property
    def run(self) -> str:
        """Name of the run below runs/."""
        return f"compare-{self.method}-{self.steps}-{self.seed}"

    @property
    def run_dir(self) -> Path:
        """Its folder, owned by the comparison."""
        return ROOT / "runs" / self.run

    @property
    def command(self) -> list[str]:
        """The demo with these settings."""
        options = {
            "--method": self.method,
            "--steps": str(self.steps),
            "--seed": str(self.seed),
            "--run": self.run,
            "--eval-split": self.split,
        }
        flat = [word for pair in options.items() for word in pair]
        return [sys.executable, "-m", "tempsamp", "demo", *flat, "--no-report"]


def all_settings(
    methods: Sequence[str], *, seeds: Sequence[int], steps: int | None
) -> list[Settings]:
    """One entry per run, seed by seed, so that a comparison cut short is still balanced.

    Raises:
        ConfigError: unknown method, or a seed or method twice.
    """
    for method in methods:
        if method not in METHODS:
            raise ConfigError(f"--methods: found {method!r}, wanted some of {', '.join(METHODS)}")
    if len(set(methods)) < len(methods) or len(set(seeds)) < len(seeds):
        raise ConfigError(f"found {methods} and seeds {seeds}, wanted each of them once")
    chosen_steps = config.load(CONFIG).learner.steps if steps is None else steps
    start, recipe = _sha256(START), _sha256(CONFIG)
    return [
        Settings(method, chosen_steps, seed, SPLIT, start, recipe)
        for seed in seeds
        for method in methods
    ]


def finished_summary(settings: Settings) -> dict[str, Any] | None:
    """The summary of a run that was made with exactly these settings, else None."""
    try:
        kept = json.loads((settings.run_dir / SETTINGS_FILE).read_text(encoding="utf-8"))
        if kept != asdict(settings):
            return None
        summary: dict[str, Any] = json.loads(
            (settings.run_dir / "summary.json").read_text(encoding="utf-8")
        )
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(
            f"{settings.run_dir}: found files of a finished run that cannot be read ({error}), "
            "wanted a whole run: delete the folder, and it is made again"
        ) from error
    return summary


def run_missing(
    wanted: Sequence[Settings], *, num_jobs: int, on_change: Callable[[str], None]
) -> None:
    """Make every run that is not there yet, `num_jobs` at a time.

    A demo starts what dies inside it again; one that fails all the same is not resumed but made
    anew by the next call, so that runs differ by their settings alone.

    Raises:
        ChildError: a run failed; finished ones are kept, and the next call goes on after them.
    """
    waiting = [settings for settings in wanted if finished_summary(settings) is None]
    running: list[tuple[Settings, Child]] = []
    with Children(OUT / "logs") as children:
        while waiting or running:
            while waiting and len(running) < num_jobs:
                settings = waiting.pop(0)
                shutil.rmtree(settings.run_dir, ignore_errors=True)
                running.append(
                    (settings, children.start(settings.run, settings.command, ends=True))
                )
                on_change(f"{settings.run} started, {len(waiting)} more to come")
            time.sleep(POLL_S)
            children.check()
            for settings, child in [pair for pair in running if pair[1].process.poll() == 0]:
                running.remove((settings, child))
                _keep(settings)
                on_change(f"{settings.run} done")


def _keep(settings: Settings) -> None:
    path = settings.run_dir / SETTINGS_FILE
    replace_text(path, json.dumps(asdict(settings), indent=2))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _comparison(wanted: Sequence[Settings]) -> Comparison:
    summaries = [summary for one in wanted if (summary := finished_summary(one)) is not None]
    return compare(summaries)


def main(
    methods: Annotated[str, typer.Option(help="comma between names")] = DEFAULT_METHODS,
    seeds: Annotated[str, typer.Option(help="comma between numbers")] = DEFAULT_SEEDS,
    steps: Annotated[int | None, typer.Option(min=1, help="default: the demo's")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="runs at once; each wants two cores")] = 1,
    markdown_file: Annotated[Path, typer.Option("--markdown")] = OUT / "comparison.md",
) -> None:
    """Run methods over seeds, then print means, paired differences and ties."""
    names = [name.strip() for name in methods.split(",")]
    try:
        numbers = [int(number) for number in seeds.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds: found {seeds!r}, wanted numbers like 0,1,2") from error
    wanted = all_settings(names, seeds=numbers, steps=steps)
    check_file(markdown_file, knob="--markdown")
    check_folder(OUT, knob="runs")
    run_missing(wanted, num_jobs=jobs, on_change=console.print)
    comparison = _comparison(wanted)
    write_file(OUT / "comparison.json", comparison.model_dump_json(indent=2), knob="runs")
    write_file(markdown_file, markdown(comparison), knob="--markdown")
    for table in tables(comparison):
        console.print(table)
    for finding in comparison.findings:
        console.print(finding)


if __name__ == "__main__":
    try:
        typer.run(main)
    except KeyboardInterrupt:
        console.print("stopped; finished runs are kept, the same command goes on")
        sys.exit(130)
    except (ConfigError, TempSampError, ValueError) as error:
        console.print(f"[red]compare: {error}[/red]")
        sys.exit(2 if isinstance(error, ConfigError) else 1)
