"""Figures that others published, with their source, to print beside ours: `rows_for(bench)`.

Percentages. SPEC A10, B1 to B6 transcribe them; where a source gives no value there is none here.
Figures on one benchmark were not all made by one protocol: a row says what its source says.
"""

from collections.abc import Mapping
from dataclasses import dataclass

REPOSITORY = "TempSamp-R1 repository, results figure (SPEC A10)"
PAPER = "arXiv 2509.18056v2"

R30, R50, R70, MIOU = "R1@0.3", "R1@0.5", "R1@0.7", "mIoU"
HIGHLIGHT_MAP, HIGHLIGHT_HIT = "HL-min-VeryGood-mAP", "HL-min-VeryGood-Hit1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One row of a published table."""

    bench: str
    model: str
    figures: Mapping[str, float]
    """Percent, by name of the metric."""
    source: str


def rows_for(bench: str) -> tuple[Published, ...]:
    """Published rows of a benchmark; none where we know of none."""
    return tuple(row for row in PUBLISHED if row.bench == bench)


_TIMELENS = ("charades-timelens", "activitynet-timelens", "qvhighlights-timelens")
_FIGURE = {
    "Qwen3.5-4B": ("74.1 55.9 29.3 51.0", "70.2 59.3 40.2 53.2", "80.7 71.7 55.3 64.5"),
    "TempSamp-R1-4B": ("79.5 65.4 37.3 57.1", "72.3 64.2 47.8 58.1", "81.0 74.1 61.8 69.4"),
    "Qwen3.5-9B": ("73.0 57.3 30.2 50.6", "69.8 59.6 38.7 52.2", "80.1 72.7 56.7 65.8"),
    "TimeLens-8B": ("76.6 63.0 35.2 55.2", "68.9 58.4 40.6 53.2", "80.2 71.6 55.5 65.5"),
    "Video-OPD-8B": ("73.1 45.8 32.4", "60.5 45.6 35.8", "73.8 60.3 50.4"),
    "OneThink-8B": ("62.1 36.2 18.1 42.2", "52.0 34.7 21.9 38.8", "70.4 53.3 36.3 53.1"),
    "Qwen3-VL-8B": ("69.2 53.4 27.5 48.3", "62.1 51.2 34.4 46.8", "74.2 64.6 49.3 59.4"),
    "TempSamp-R1-7B": ("59.1 37.3 16.2 39.8", "48.3 33.2 18.6 34.4", "75.6 60.6 41.1 55.1"),
}
"""R1@0.3, R1@0.5, R1@0.7 and, but for one model, mIoU on the three benchmarks."""


def _figures(numbers: str) -> Mapping[str, float]:
    values = [float(number) for number in numbers.split()]
    return dict(zip((R30, R50, R70, MIOU), values, strict=False))


def _figure_rows() -> tuple[Published, ...]:
    return tuple(
        Published(bench=bench, model=model, figures=_figures(numbers), source=REPOSITORY)
        for model, columns in _FIGURE.items()
        for bench, numbers in zip(_TIMELENS, columns, strict=True)
    )


def _paper(bench: str, model: str, where: str, **figures: float) -> Published:
    names = {"r30": R30, "r50": R50, "r70": R70, "miou": MIOU}
    names |= {"highlight_map": HIGHLIGHT_MAP, "highlight_hit": HIGHLIGHT_HIT}
    return Published(
        bench=bench,
        model=model,
        figures={names[name]: value for name, value in figures.items()},
        source=f"{PAPER}, {where}",
    )


_STRATEGIES = "Table 4 (Charades-STA, G = 4)"
_FEW_SHOT = "few-shot, 3 epochs"
_CHARADES = "charades-sta"

PUBLISHED: tuple[Published, ...] = (
    *_figure_rows(),
    _paper(_CHARADES, "GRPO", _STRATEGIES, r30=81.2, r50=68.9, r70=46.0),
    _paper(_CHARADES, "mixed policy", _STRATEGIES, r30=77.8, r50=63.0, r70=41.3),
    _paper(_CHARADES, "reward downscaling", _STRATEGIES, r30=81.2, r50=70.3, r70=48.1),
    _paper(_CHARADES, "advantage anchoring", _STRATEGIES, r30=81.8, r50=70.7, r70=49.1),
    _paper(_CHARADES, "non-linear shaping", _STRATEGIES, r30=82.9, r50=72.1, r70=49.6),
    _paper(_CHARADES, "TempSamp-R1, 50-shot", _FEW_SHOT, r50=46.7, miou=44.7),
    _paper(_CHARADES, "TempSamp-R1, 100-shot", _FEW_SHOT, r50=54.0, miou=49.1),
    _paper(_CHARADES, "TempSamp-R1, 200-shot", _FEW_SHOT, r50=58.2, miou=51.8),
    _paper(_CHARADES, "TempSamp-R1, 500-shot", _FEW_SHOT, r50=64.0, miou=55.1),
    _paper(_CHARADES, "TempSamp-R1, answer", "Table 1", miou=61.7),
    _paper(_CHARADES, "TempSamp-R1, think", "Table 6", miou=62.1),
    _paper(_CHARADES, "TempSamp-R1, mixed (oracle)", "mixed CoT inference", miou=64.2),
    _paper("activitynet-captions", "TempSamp-R1, mixed (oracle)", "mixed CoT", miou=54.9),
    _paper("activitynet-captions", "TempSamp-R1 from Charades-STA", "transfer", miou=34.7),
    _paper("qvhighlights", "TempSamp-R1, answer", "answers alone", highlight_map=30.0),
    _paper(
        "qvhighlights",
        "TempSamp-R1, mixed (oracle)",
        "mixed CoT inference",
        highlight_map=29.3,
        highlight_hit=63.7,
    ),
    _paper("qvhighlights", "TimeChat", "as compared", highlight_map=21.7, highlight_hit=37.9),
    _paper("qvhighlights", "VideoChat-T", "as compared", highlight_map=27.0, highlight_hit=55.3),
    *(
        _paper(_CHARADES, f"{model}, G = {samples}", "samples ablation", r70=value)
        for model, values in (
            ("GRPO", (34.4, 46.0, 49.2, 47.1)),
            ("TempSamp-R1", (44.6, 49.6, 50.3, 50.8)),
        )
        for samples, value in zip((2, 4, 6, 8), values, strict=True)
    ),
)
