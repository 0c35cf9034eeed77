"""One finished run of a comparison as a small JSON that is committed: `RunRecord`.

    summary.json of a demo -> record_of() -> docs/bench/compare/<regime>/<method>-<seed>.json

So runs may be made on several machines, one after the other; `page` makes docs/compare.md of all
that are there. What a run did not measure is null.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from common.queue.disk import write_file
from jobs.demo.figures import Record

RECORD_VERSION: Literal[1] = 1

FIGURES: Mapping[str, str] = {
    "miou": "greedy mIoU",
    "sampled_miou": "sampled mIoU",
    "r1_at_0.5": "greedy R1@.5",
    "sampled_r1_at_0.5": "sampled R1@.5",
    "r1_at_0.7": "greedy R1@.7",
    "sampled_r1_at_0.7": "sampled R1@.7",
    "answers_differ": "answers differ",
    "entropy": "entropy (nats per token)",
    "best_of_g": "best of G",
    "without_hit": "queries without a hit",
}
"""Key in the summary (without `_end`) → what it is called."""
MECHANISM: Mapping[str, str] = {
    "train_without_hit_start": "groups without a hit, first 20 steps",
    "train_without_hit_end": "the same, last 20 steps",
    "injected_advantage_start": "A of the truth in those, first 20 steps",
    "injected_advantage": "A of the truth in those, all steps",
    "contamination": "contamination",
    "sign_flip_share": "sign flips",
    "train_iou_end": "IoU on training rows, last 20 steps",
}
"""Key in the summary → what it is called; of the training groups, SPEC A7's diagnostics."""

Figures = dict[str, float | None]


class Early(Record):
    """The version that validated best."""

    step: int
    figures: Figures


class RunRecord(Record):
    """Settings and figures of one run; shares and IoUs in [0, 1], on the test split."""

    record_version: Literal[1] = RECORD_VERSION
    regime: str
    method: str
    seed: int
    steps: int
    split: str
    queries: int
    num_samples: int
    """G of best of G, and of the sampled figures."""
    settings_sha256: str
    """Over run file, method, clips and rows, steps and shipped start."""
    start_sha256: str
    """Of the weights that the run started from. Made starts differ from machine to machine."""
    start: Figures
    """Weights that the run began with."""
    last: Figures
    """Weights of the last step."""
    early: Early | None
    """None: not evaluated."""
    mechanism: Figures
    """Of its training groups."""
    best_constant_miou: float
    random_span_miou: float
    failed_queries: int
    """Requests without an answer, at the start and the end; they are in no figure."""
    train_minutes: float
    """First prompt to last step."""
    machine: str
    load: float | None
    """Mean one-minute load average of the machine while the run went on, its own processes in it;
    None: not noted."""

    @model_validator(mode="after")
    def _has_known_figures(self) -> "RunRecord":
        early = None if self.early is None else self.early.figures
        for found in (self.start, self.last, early):
            if found is not None and not found.keys() <= FIGURES.keys():
                raise ValueError(f"found figures {sorted(found)}, wanted some of {list(FIGURES)}")
        return self

    @property
    def run(self) -> tuple[str, int]:
        """Method and seed."""
        return self.method, self.seed


def path_of(folder: Path, regime: str, method: str, seed: int) -> Path:
    """Where a run's record is, below the folder of all."""
    return folder / regime / f"{method}-{seed}.json"


def record_of(
    summary: Mapping[str, Any],
    *,
    regime: str,
    method: str,
    settings_sha256: str,
    start_sha256: str,
    load: float | None,
) -> RunRecord:
    """The record of a finished run.

    Args:
        summary: content of its summary.json.
        regime: what it was made on.
        method: as the comparison calls it.
        settings_sha256: see `RunRecord`; likewise below.
        start_sha256: of the start's weights.
        load: of the machine meanwhile.

    Raises:
        ValueError: it was evaluated with other weights than its last.
    """
    if summary["policy_version_end"] != summary["steps"]:
        raise ValueError(
            f"{summary['run']}: found an evaluation of weight version "
            f"{summary['policy_version_end']}, wanted {summary['steps']}: run it again"
        )
    best_step = summary["best_step"]
    return RunRecord(
        regime=regime,
        method=method,
        seed=summary["seed"],
        steps=summary["steps"],
        split=summary["eval_split"],
        queries=summary["eval_queries"],
        num_samples=summary["num_samples"],
        settings_sha256=settings_sha256,
        start_sha256=start_sha256,
        start=_figures(summary, "start"),
        last=_figures(summary, "end"),
        early=None
        if best_step is None
        else Early(step=best_step, figures=_figures(summary, "best")),
        mechanism={key: _rounded(summary[key]) for key in MECHANISM},
        best_constant_miou=_number(summary["best_constant_miou"]),
        random_span_miou=_number(summary["random_span_miou"]),
        failed_queries=summary["failed_queries_start"] + summary["failed_queries_end"],
        train_minutes=round(summary["train_wall_s"] / 60, 2),
        machine=summary["machine"],
        load=None if load is None else round(load, 2),
    )


def read(path: Path) -> RunRecord | None:
    """A run's record; None: there is none.

    Raises:
        ValueError: it cannot be read; names the file.
    """
    try:
        return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path}: found no record of a run ({error}), wanted one") from error


def write(record: RunRecord, folder: Path) -> Path:
    """Write a run's record below the folder of all; whole or not at all."""
    path = path_of(folder, record.regime, record.method, record.seed)
    write_file(path, record.model_dump_json(indent=1) + "\n", knob="--records")
    return path


def read_all(folder: Path) -> Iterator[RunRecord]:
    """Every record below the folder of all, in order of their names.

    Raises:
        ValueError: one lies where another belongs.
    """
    for path in sorted(folder.glob("*/*.json")):
        record = read(path)
        assert record is not None
        wanted = path_of(folder, record.regime, record.method, record.seed)
        if wanted != path:
            raise ValueError(f"{path}: found the record of {wanted.relative_to(folder)}")
        yield record


def _figures(summary: Mapping[str, Any], when: str) -> Figures:
    return {key: _rounded(summary[f"{key}_{when}"]) for key in FIGURES}


def _rounded(value: float | None) -> float | None:
    return None if value is None else _number(value)


def _number(value: float) -> float:
    return round(value, 6)
