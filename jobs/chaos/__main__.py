"""`make chaos MINUTES=10 SEED=0` (`python -m jobs.chaos`): kill at random in a demo, then prove.

A demo (`tempsamp demo`, all of it real) trains while its processes are killed and frozen in an
order that the seed alone decides (`schedule`); what is lost or trained twice comes from the code of
`tempsamp audit`, over the run's ledger and row file. Writes `runs/<run>/chaos.json`; exit code 1
when a row was lost or trained twice, a process was left behind, or the run did not come to its end.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from common.errors import ConfigError
from jobs.audit.command import audited
from jobs.audit.findings import Audit
from jobs.chaos.ring import Ring
from jobs.chaos.schedule import strikes
from jobs.chaos.storm import Storm, StormError
from jobs.chaos.verdict import FILE, is_well, table, verdict
from jobs.demo.summary import SUMMARY_FILE, machine
from jobs.local import terminal
from jobs.local.processes import interruptible

ROOT = Path(__file__).resolve().parents[2]
STEPS = 1_000_000
"""More than it comes to: the learner is stopped when time is up."""
CHECKPOINT_EVERY = 10
"""The demo's 50 would have a learner that is killed every half a minute do most steps again."""

console = terminal.console()


def command(
    minutes: Annotated[float, typer.Option(min=0.1, help="from the first step on")] = 10.0,
    seed: Annotated[int, typer.Option(min=0, help="of strikes and of the run")] = 0,
    run: Annotated[str | None, typer.Option(help="name below runs/; default: a new one")] = None,
    replicas: Annotated[int, typer.Option(min=1, help="vLLM replicas")] = 1,
    ranks: Annotated[int, typer.Option(min=1, help="learner processes")] = 1,
    eval_queries: Annotated[int, typer.Option(min=1, help="held-out queries")] = 96,
) -> None:
    """Kill and freeze processes of a demo at random; prove that no row was lost or repeated."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    run = run or f"chaos-{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir = ROOT / "runs" / run
    if run_dir.exists():
        raise ConfigError(f"RUN: found {run_dir.relative_to(ROOT)}, wanted a new name")
    size = {"replicas": replicas, "ranks": ranks}
    facts = {"run": run, "seed": seed, "minutes": minutes, **size, "machine": machine()}
    demo = _demo(run, seed=seed, eval_queries=eval_queries, size=size)
    try:
        with interruptible(), Ring(run_dir, demo, replicas=replicas, ranks=ranks) as ring:
            found = weathered(ring, seed=seed, minutes=minutes, facts=facts)
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error
    (run_dir / FILE).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    console.print(table(found))
    console.print_json(data={key: found[key] for key in found if key != "by_victim"})
    console.print(f"written: {(run_dir / FILE).relative_to(ROOT)}")
    if not is_well(found):
        for line in found["trouble"]:
            typer.echo(f"tempsamp: {line}", err=True)
        raise typer.Exit(1)


def weathered(ring: Ring, *, seed: int, minutes: float, facts: dict[str, Any]) -> dict[str, Any]:
    """Strike, stop, and judge; returns the content of chaos.json."""
    storm, trouble = Storm(ring), []
    try:
        storm.rage(strikes(seed), seconds=60 * minutes)
        storm.end()
        if ring.demo.returncode != 0:
            trouble.append(f"the demo ended with code {ring.demo.returncode}: {ring.tail()}")
    except StormError as error:
        trouble.append(str(error))
        ring.stop()
    orphans = ring.orphans()
    audit, fault = _audit(ring.run_dir)
    return verdict(
        storm.recoveries,
        audit=audit,
        summary=_summary(ring.run_dir),
        orphans=orphans,
        trouble=[*trouble, *fault],
        facts={**facts, "missed": storm.missed, "steps_done": ring.steps},
    )


def _demo(run: str, *, seed: int, eval_queries: int, size: Mapping[str, int]) -> list[str]:
    return [
        *(sys.executable, "-m", "tempsamp", "demo", "--run", run, "--seed", str(seed)),
        *("--steps", str(STEPS), "--eval-queries", str(eval_queries), "--no-report"),
        *("--set", f"learner.checkpoint_every={CHECKPOINT_EVERY}"),
        *(word for name, count in size.items() for word in (f"--{name}", str(count))),
    ]


def _audit(run_dir: Path) -> tuple[Audit | None, list[str]]:
    try:
        return audited(run_dir), []
    except ConfigError as error:
        return None, [str(error)]


def _summary(run_dir: Path) -> dict[str, Any] | None:
    path = run_dir / SUMMARY_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def main() -> None:
    """For `python -m jobs.chaos`."""
    try:
        typer.run(command)
    except ConfigError as error:
        typer.echo(f"tempsamp: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
