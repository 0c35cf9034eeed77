"""Make the runs of a comparison that have no record yet, each the whole demo in processes.

    Settings -> `tempsamp demo …` -> runs/compare-<regime>-<method>-<steps>-<seed>/summary.json
             -> `records.RunRecord`, written as soon as its run is done

A run whose record is there with equal settings is not repeated, on whichever machine it was made;
one that fails or is interrupted is made anew, so that runs differ by their settings alone.
"""

import hashlib
import json
import os
import shutil
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from common import config
from common.errors import ConfigError
from jobs.demo.comparing import records, rules
from jobs.demo.comparing.records import RunRecord
from jobs.demo.run import (
    CLIP_CACHE,
    REGIME_FILES,
    ROOT,
    SHIPPED_START,
    STARTS,
    decode_clips,
    make_start,
)
from jobs.local.processes import Child, Children
from jobs.toy.regimes import REGIMES, Regime

LOGS = ROOT / "runs" / "compare" / "logs"
WEIGHTS = "model.safetensors"
POLL_S = 0.5
LOAD_EVERY_S = 5.0

Say = Callable[[str], None]
Kept = Callable[[RunRecord], None]


@dataclass(frozen=True)
class Settings:
    """What decides the result of one run."""

    regime: str
    method: str
    steps: int
    seed: int
    eval_queries: int | None = None
    """Only the first held-out queries; None: all, as the rule says."""

    @property
    def made_on(self) -> Regime:
        """Clips, rows and start."""
        return REGIMES[self.regime]

    @property
    def run(self) -> str:
        """Name of the run below runs/."""
        return f"compare-{self.regime}-{self.method}-{self.steps}-{self.seed}"

    @property
    def run_dir(self) -> Path:
        """Its folder, owned by the comparison."""
        return ROOT / "runs" / self.run

    @property
    def command(self) -> list[str]:
        """The demo with these settings."""
        method, settings = rules.METHOD_SETTINGS[self.method]
        options = {
            "--regime": self.regime,
            "--method": method,
            "--steps": str(self.steps),
            "--seed": str(self.seed),
            "--run": self.run,
            "--eval-split": rules.SPLIT,
        }
        if self.eval_queries is not None:
            options["--eval-queries"] = str(self.eval_queries)
        flat = [word for pair in options.items() for word in pair]
        cached = f"shared.video.cache={json.dumps(str(CLIP_CACHE))}"
        flat += [word for setting in (*settings, cached) for word in ("--set", setting)]
        demo = [sys.executable, "-m", "tempsamp", "demo"]
        return [*demo, *flat, "--no-report", "--evaluate-best"]

    @property
    def sha256(self) -> str:
        """Over everything that decides the result, whichever machine makes it."""
        run_file = tomllib.loads(run_file_of(self.regime).read_text(encoding="utf-8"))
        content = {
            "run_file": run_file,
            "method": rules.METHOD_SETTINGS[self.method],
            "clips_and_rows": self.made_on.described(),
            "shipped_start": file_digest(SHIPPED_START / WEIGHTS),
            "steps": self.steps,
            "eval_queries": self.eval_queries,
            "split": rules.SPLIT,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass
class InWork:
    """A run that goes on."""

    settings: Settings
    child: Child
    loads: list[float] = field(default_factory=list)
    """One-minute load averages."""


def run_file_of(regime: str) -> Path:
    """What its runs have in common."""
    return REGIME_FILES / f"{regime}.toml"


def all_settings(
    regime: str,
    methods: Sequence[str],
    *,
    seeds: Sequence[int],
    steps: int | None = None,
    eval_queries: int | None = None,
) -> list[Settings]:
    """One entry per run, seed by seed, so that a comparison cut short is still balanced.

    Raises:
        ConfigError: unknown regime or method, or a seed or method twice.
    """
    if regime not in rules.METHODS:
        raise ConfigError(f"REGIME: found {regime!r}, wanted one of {', '.join(rules.METHODS)}")
    for method in methods:
        if method not in rules.METHODS[regime]:
            wanted = ", ".join(rules.METHODS[regime])
            raise ConfigError(f"METHODS: found {method!r}, wanted some of {wanted} in {regime}")
    if len(set(methods)) < len(methods) or len(set(seeds)) < len(seeds):
        raise ConfigError(f"found {methods} and seeds {seeds}, wanted each of them once")
    chosen_steps = steps or config.load(run_file_of(regime)).learner.steps
    return [
        Settings(regime, method, chosen_steps, seed, eval_queries)
        for seed in seeds
        for method in methods
    ]


def finished(settings: Settings, folder: Path) -> RunRecord | None:
    """The record of a run that was made with these settings."""
    path = records.path_of(folder, settings.regime, settings.method, settings.seed)
    record = records.read(path)
    if record is None or record.settings_sha256 != settings.sha256:
        return None
    return record


def run_missing(
    wanted: Sequence[Settings], *, folder: Path, num_jobs: int, on_change: Say, on_record: Kept
) -> None:
    """Make every run that has no record yet, `num_jobs` at a time.

    Args:
        wanted: runs, in this order.
        folder: of the records.
        num_jobs: at once; each wants two cores.
        on_change: takes a line of progress.
        on_record: called when a further record is there.

    Raises:
        ChildError: a run failed; finished ones have records, and the next call goes on after them.
    """
    waiting = [settings for settings in wanted if finished(settings, folder) is None]
    for regime in {settings.regime: settings.made_on for settings in waiting}.values():
        make_start(regime)
        decode_clips(regime, config_file=run_file_of(regime.name), split=rules.SPLIT)
    running: list[InWork] = []
    next_load_s = 0.0
    with Children(LOGS) as children:
        while waiting or running:
            while waiting and len(running) < num_jobs:
                running.append(_start(waiting.pop(0), children))
                on_change(f"{running[-1].settings.run} started, {len(waiting)} more to come")
            time.sleep(POLL_S)
            children.check()
            if time.monotonic() >= next_load_s:
                next_load_s = time.monotonic() + LOAD_EVERY_S
                for work in running:
                    work.loads.append(os.getloadavg()[0])
            for work in [one for one in running if one.child.process.poll() == 0]:
                running.remove(work)
                record = _keep(work, folder)
                on_change(f"{work.settings.run} done: {_said(record)}")
                on_record(record)


def file_digest(path: Path) -> str:
    """Hex sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _start(settings: Settings, children: Children) -> InWork:
    shutil.rmtree(settings.run_dir, ignore_errors=True)
    return InWork(settings, children.start(settings.run, settings.command, ends=True))


def _keep(work: InWork, folder: Path) -> RunRecord:
    settings = work.settings
    summary: Mapping[str, Any] = json.loads(
        (settings.run_dir / "summary.json").read_text(encoding="utf-8")
    )
    start = SHIPPED_START if settings.made_on.start is None else STARTS / settings.regime
    record = records.record_of(
        summary,
        regime=settings.regime,
        method=settings.method,
        settings_sha256=settings.sha256,
        start_sha256=file_digest(start / WEIGHTS),
        load=fmean(work.loads) if work.loads else None,
    )
    records.write(record, folder)
    return record


def _said(record: RunRecord) -> str:
    early = "" if record.early is None else f", step {record.early.step} validated best"
    return f"greedy mIoU {record.last['miou']:.3f}{early}"
