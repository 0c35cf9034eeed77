"""`runs/<name>/report.html`: one file that shows what a run learned, for a browser or a phone.

    summary + metrics.jsonl + validation.jsonl + answers before and after + clips -> one page

Nothing is loaded from elsewhere: curves are inline SVG (`jobs.demo.charts`), frames are JPEGs in
the page (`jobs.demo.timelines`), the look is `report.html.j2`. `python -m jobs.demo.report RUN_DIR
VIDEO_ROOT` writes the page of a finished run again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import jinja2
import typer

from common.errors import ConfigError
from common.queue.disk import write_file
from jobs.demo.charts import learning_curves
from jobs.demo.echo import echo
from jobs.demo.figures import Evaluation, evaluation_of
from jobs.demo.summary import (
    ANSWERS_AFTER,
    ANSWERS_BEFORE,
    METRICS_FILE,
    SUMMARY_FILE,
    VALIDATION_FILE,
    read_metrics,
)
from jobs.demo.timelines import timelines
from jobs.evaluation.journal import read_records
from jobs.evaluation.showing.timelines import NUM_FRAMES

REPORT_FILE = "report.html"

NUM_CLIPS = 12
SAME = 0.0005
"""Figures closer than this are shown as equal."""

METHODS = {
    "tempsamp": ("TempSamp-R1", "true answers join each group, rewards are shaped"),
    "grpo": ("GRPO", "the policy learns from its own answers alone"),
    "mixed": ("Mixed policy", "true answers join each group as they are"),
    "anchor": ("Anchored advantages", "true answers join each group, their advantage tied down"),
    "downscale": ("Downscaled rewards", "true answers join each group for less than they earn"),
    "sft": ("Supervised control", "the policy learns from true answers alone"),
}
"""Name and what it does, as the page's title has it."""


@dataclass(frozen=True)
class FigureRow:
    """One figure before and after, as text."""

    name: str
    meaning: str
    start: str
    end: str
    change: str
    tone: str
    """CSS class of the change: better, worse or none."""


@dataclass(frozen=True)
class FigureGroup:
    """Rows of the table under one heading."""

    title: str
    rows: list[FigureRow]


def write_report(
    run_dir: Path,
    *,
    summary: Mapping[str, Any],
    start: Evaluation,
    end: Evaluation,
    video_root: Path,
) -> Path:
    """Write `run_dir/report.html`.

    Args:
        run_dir: holds metrics.jsonl and validation.jsonl; without them the page has no curves.
        summary: what `jobs.demo.summary.build_summary` made.
        start: answers of the start checkpoint.
        end: answers of the trained policy to the same rows.
        video_root: where the evaluations' clip paths start.
    """
    source = resources.files("jobs.demo").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(source).render(
        summary=summary,
        method=METHODS.get(summary["method"], (summary["method"], "")),
        verdict=verdict(summary),
        echoes=echo(summary),
        chips=_chips(summary),
        miou=_row(summary, "miou", name="Mean IoU"),
        ladder=_ladder(summary),
        key_figures=_key_figures(summary),
        groups=_groups(summary),
        failures=[*start.failures, *end.failures],
        charts=learning_curves(
            read_metrics(run_dir / METRICS_FILE),
            validations=read_metrics(run_dir / VALIDATION_FILE),
            validation_mode=summary.get("validation_mode", "answer"),
        ),
        timelines=timelines(start, end=end, video_root=video_root, num_clips=NUM_CLIPS),
        cell_percent=100 / NUM_FRAMES,
    )
    path = run_dir / REPORT_FILE
    write_file(path, page, knob="learner.run_dir")
    return path


def verdict(summary: Mapping[str, Any]) -> str:
    """What came out, in one or two sentences; says so when training did not help."""
    start, end, constant = (summary[k] for k in ("miou_start", "miou_end", "best_constant_miou"))
    if abs(end - start) < SAME:
        change = f"stayed at {end:.3f}"
    else:
        change = f"{'rose' if end > start else 'fell'} from {start:.3f} to {end:.3f}"
    sentences = [
        f"On {summary['eval_queries']} held-out queries the mean IoU {change}. The best answer "
        f"that never looks at a clip gets {constant:.3f}{'' if end > constant else ', no less'}."
    ]
    before, after = summary["answers_differ_start"], summary["answers_differ_end"]
    if before is not None and after is not None:
        sentences.append(
            f"Asked about two objects of one clip, the policy gives different answers in "
            f"{after:.0%} of cases ({before:.0%} before)."
        )
    return " ".join(sentences)


def duration_text(seconds: float) -> str:
    """Such as `6 min 12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest if not hours else 0, "s")]
    return " ".join(f"{count} {unit}" for count, unit in parts if count) or "0 s"


def main(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    video_root: Annotated[Path, typer.Argument(help="Where its clips lie.")],
) -> None:
    """Write a run's report again."""
    write_report(
        run_dir,
        summary=_summary(run_dir / SUMMARY_FILE),
        start=evaluation_of(read_records(run_dir / ANSWERS_BEFORE)),
        end=evaluation_of(read_records(run_dir / ANSWERS_AFTER)),
        video_root=video_root,
    )


def _summary(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: found no summary ({error}), wanted that of a finished run: resume it"
        ) from error
    return found


def _chips(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of the facts under the title."""
    return [
        ("method", summary["method"]),
        ("steps", str(summary["steps"])),
        ("seed", str(summary["seed"])),
        ("whole run", duration_text(summary["wall_s"])),
        ("training", duration_text(summary["train_wall_s"])),
        ("machine", summary["machine"]),
    ]


def _ladder(summary: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Label, mIoU and CSS class, from knowing nothing to the trained policy."""
    return [
        ("Random span", summary["random_span_miou"], "blind"),
        ("Best constant", summary["best_constant_miou"], "blind"),
        ("Before training", summary["miou_start"], ""),
        ("After training", summary["miou_end"], "now"),
    ]


def _key_figures(summary: Mapping[str, Any]) -> list[FigureRow]:
    """The cards below the large figure."""
    gap = summary["max_logprob_gap"]
    blind = summary["best_constant_r1_at_0.5"], summary["random_span_r1_at_0.5"]
    return [
        _row(
            summary,
            "r1_at_0.5",
            name="R1@.5",
            meaning=f"best constant {blind[0]:.3f}, random span {blind[1]:.3f}",
        ),
        _row(summary, "r1_at_0.7", name="R1@.7", meaning="answers with IoU of .7 and more"),
        _row(
            summary,
            "answers_differ",
            name="Answers differ",
            meaning="pairs of queries of one clip",
        ),
        FigureRow(
            name="Engines agree within",
            meaning="nats, vLLM against the learner at equal weights",
            start="",
            end=_number(gap) if gap is None or gap >= SAME else f"{gap:.0e}",
            change="",
            tone="",
        ),
    ]


def _groups(summary: Mapping[str, Any]) -> list[FigureGroup]:
    overlap = _number(summary["gt_distractor_iou"])
    blind = summary["best_constant_miou"], summary["random_span_miou"]
    greedy = [
        ("miou", "Mean IoU", f"best constant {blind[0]:.3f}, random span {blind[1]:.3f}"),
        ("r1_at_0.3", "R1@.3", ""),
        ("r1_at_0.5", "R1@.5", ""),
        ("r1_at_0.7", "R1@.7", ""),
        ("parse_rate", "Readable answers", ""),
    ]
    binding = [
        (
            "distractor_iou",
            "IoU with the objects not asked for",
            f"the true spans overlap by {overlap} by themselves",
        ),
        ("answers_differ", "Answers differ", "share of query pairs of one clip"),
    ]
    samples = f"{summary['num_samples']} answers per query"
    sampled = [
        ("sampled_miou", "Mean IoU", f"over all samples, {samples}"),
        ("sampled_r1_at_0.5", "R1@.5", ""),
        ("sampled_r1_at_0.7", "R1@.7", ""),
        ("best_of_g", f"Best of {summary['num_samples']}", "mean IoU of each query's best sample"),
        ("entropy", "Entropy", "nats per token; what is left to explore"),
    ]
    titled = {"Greedy answers": greedy, "Does the query matter?": binding}
    if summary["num_samples"]:
        titled["Sampled at temperature 1"] = sampled
    return [
        FigureGroup(
            title, [_row(summary, key, name=name, meaning=note) for key, name, note in rows]
        )
        for title, rows in titled.items()
    ]


def _row(summary: Mapping[str, Any], key: str, *, name: str, meaning: str = "") -> FigureRow:
    start, end = summary[f"{key}_start"], summary[f"{key}_end"]
    change, tone = "", ""
    if start is not None and end is not None:
        moved = end - start
        change = "±0" if abs(moved) < SAME else f"{moved:+.3f}".replace("-", "\u2212")
        if change != "±0" and key in HIGHER_IS_BETTER:
            tone = "better" if moved > 0 else "worse"
    return FigureRow(name, meaning, _number(start), _number(end), change, tone)


HIGHER_IS_BETTER = frozenset(
    {
        *("miou", "r1_at_0.3", "r1_at_0.5", "r1_at_0.7", "parse_rate", "answers_differ"),
        *("sampled_miou", "sampled_r1_at_0.5", "sampled_r1_at_0.7", "best_of_g"),
    }
)
"""The other figures are good or bad only beside something else, and get no colour."""


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    typer.run(main)
