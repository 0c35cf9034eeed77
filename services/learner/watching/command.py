"""`tempsamp replay STEP_DUMP`: does a step come to the same numbers again?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from services.learner.watching.replay import Quantity


def command(
    dump: Annotated[Path, typer.Argument(help="<run_dir>/steps/step-N (learner.dump_steps).")],
    model: Annotated[
        Path | None,
        typer.Option(
            help="Weights that the step began with, checkpoints/step-(N-1)/hf or for step 1 "
            "shared.model: log-probabilities are computed again too."
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="List all quantities, not only those that differ.")
    ] = False,
) -> None:
    """Recompute a dumped step in float64 on the CPU and name the first quantity that differs.

    Exit code 1 if one does. Exit code 2 for a folder that is no dump.
    """
    from common.model.folder import fetched
    from services.learner.watching.replay import replay

    folder = None if model is None else fetched(str(model), knob="--model").path
    found = list(replay(dump, model=folder))
    wrong = [quantity for quantity in found if not quantity.agrees]
    shown = found if everything else wrong
    if shown:
        _show(shown)
    if wrong:
        first = wrong[0]
        typer.echo(
            f"tempsamp: {dump.name}: the first of {len(wrong)} quantities that differ is "
            f"{first.name}: found {first.recomputed:.9g}, recorded {first.recorded:.9g} "
            f"(largest difference {first.difference:.3g}, allowed {first.allowed:.3g})",
            err=True,
        )
        raise typer.Exit(1)
    typer.echo(f"{dump.name}: all {len(found)} quantities are the same in float64")


def _show(quantities: "list[Quantity]") -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("quantity", "recorded", "in float64", "difference", "allowed"):
        table.add_column(name, justify="left" if name == "quantity" else "right")
    for item in quantities:
        numbers = (item.recorded, item.recomputed, item.difference, item.allowed)
        style = None if item.agrees else "bold"
        table.add_row(item.name, *(f"{number:.6g}" for number in numbers), style=style)
    Console(highlight=False, soft_wrap=True).print(table)
