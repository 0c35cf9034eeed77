"""`tempsamp plan RUN.toml`: does a run file fit a fleet of GPUs? Nothing is loaded, no GPU needed.

    run file + GPU counts -> [jobs.recipes.plan] -> a table; what does not fit, one line each

Exit code 1 when something does not fit, 2 for a mistake in the run file or the options.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from common import config
from common.model.architecture import architecture_of
from jobs.local import terminal
from jobs.recipes.plan import Plan, misfits, plan, rows
from jobs.recipes.times import Fleet

MOST = 1_000_000
"""Of anything on the command line; far beyond it the arithmetic would overflow."""


def command(
    run_file: Annotated[Path, typer.Argument(help="The run's TOML file.")],
    learner_gpus: Annotated[int, typer.Option(min=1, max=MOST, help="Learner ranks, one a GPU.")],
    rollout_gpus: Annotated[
        int,
        typer.Option(min=0, max=MOST, help="GPUs of all replicas, rollout.tensor_parallel each."),
    ],
    gpu_memory_gb: Annotated[
        float, typer.Option(min=1, max=MOST, help="Of one GPU, 1e9 bytes.")
    ] = 96.0,
    gpu_tflops: Annotated[
        float, typer.Option(min=1, max=MOST, help="Peak of one GPU in bfloat16; default: H20.")
    ] = 148.0,
    gpu_bandwidth_gbs: Annotated[
        float,
        typer.Option(min=1, max=MOST, help="Memory bandwidth of one GPU, GB/s; default: H20."),
    ] = 4000.0,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="section.key=value, over the file; may be repeated."),
    ] = None,
) -> None:
    """Say whether a run file fits a fleet of GPUs, and about how long a step takes."""
    run = config.load(run_file, overrides=overrides or ())
    made = plan(
        run,
        architecture=architecture_of(run.shared.model),
        fleet=Fleet(
            learner_gpus=learner_gpus,
            rollout_gpus=rollout_gpus,
            gpu_memory_gb=gpu_memory_gb,
            gpu_tflops=gpu_tflops,
            gpu_bandwidth_gbs=gpu_bandwidth_gbs,
        ),
    )
    _show(made)
    if wrong := misfits(made):
        for line in wrong:
            typer.echo(f"tempsamp: {line}", err=True)
        raise typer.Exit(1)


def _show(made: Plan) -> None:
    table = Table(
        title=f"{made.run.shared.run_id}: {made.fleet.learner_gpus} learner ranks, "
        f"{made.replicas} replicas",
        caption="estimates for the longest clips and answers; GB = 1e9 bytes",
        box=box.SIMPLE,
    )
    for heading in ("", "", "found", "from"):
        table.add_column(heading, justify="right" if heading == "found" else "left")
    last = ""
    for figure in rows(made):
        table.add_row(
            figure.part if figure.part != last else "", figure.name, figure.value, figure.how
        )
        last = figure.part
    terminal.console().print(table)
