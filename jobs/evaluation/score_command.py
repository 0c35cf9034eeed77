"""`tempsamp eval score`: a prediction file and its annotations → tables and JSON, without a model.

Neighbours: `jobs.evaluation.scoring.score` computes, `jobs.evaluation.showing.tables` prints.
"""

from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError
from common.queue.disk import check_file, write_file
from jobs.evaluation.scoring.score import BENCHES, score_file


def command(
    predictions: Annotated[
        Path, typer.Argument(help="Ours, moment_detr's, TimeLens' or VTG-LLM's; may be gzipped.")
    ],
    bench: Annotated[str, typer.Option(help=f"One of {', '.join(BENCHES)}.")],
    gt: Annotated[
        Path | None,
        typer.Option(help="Annotation file; default: the truth that the predictions repeat."),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Score what both files have; count the rest.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--json", help="Also write it here.")] = None,
) -> None:
    """Score a prediction file under every protocol, without a model."""
    from jobs.evaluation.showing.tables import tables_of
    from jobs.local import terminal

    if output is not None:
        check_file(output, knob="--json", inputs=[predictions, gt])
    try:
        score = score_file(predictions, bench=bench, gt=gt, partial=partial)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    console = terminal.console()
    for table in tables_of(score, mode=score.mode):
        console.print(table)
    for name, near in score.unknown_nearest.items():
        line = f"no annotation of {name!r}; nearest: {near or 'nothing like it'}"
        console.print(line, markup=False, soft_wrap=True)
    if output is not None:
        write_file(output, score.model_dump_json(indent=1) + "\n", knob="--json")
