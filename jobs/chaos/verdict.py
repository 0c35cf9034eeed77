"""What a storm came to: recoveries, audit, summary → chaos.json and its table (pure)."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from rich import box
from rich.table import Table

from jobs.audit.findings import Audit
from jobs.chaos.schedule import VICTIMS
from jobs.chaos.storm import Recovery

FILE = "chaos.json"


def verdict(
    recoveries: Sequence[Recovery],
    *,
    audit: Audit | None,
    summary: dict[str, Any] | None,
    orphans: Sequence[str],
    trouble: Sequence[str],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """The content of chaos.json; null: not known, which is a failure.

    Args:
        recoveries: strikes that hit.
        audit: of the run's ledger.
        summary: the demo's.
        orphans: command lines of what still ran after the end.
        trouble: what went wrong otherwise, in words.
        facts: goes in as it is.
    """
    kills = [r for r in recoveries if r.strike.is_kill]
    frozen = [r for r in recoveries if not r.strike.is_kill]
    return {
        **facts,
        "kills": len(kills),
        "frozen": len(frozen),
        "lost": audit.num_lost if audit else None,
        "trained_twice": audit.num_trained_twice if audit else None,
        "violations": len(audit.violations) if audit else None,
        "given_up": audit.num_given_up if audit else None,
        "unscored": summary["groups_unscored"] if summary else None,
        "steps": audit.step if audit else None,  # without those that had to be done again
        "epochs_finished": sum(e.is_finished for e in audit.epochs) if audit else None,
        "recoveries_s": _spread(kills),
        "frozen_recoveries_s": _spread(frozen),
        "by_victim": {
            victim: {
                "kills": sum(r.strike.victim == victim for r in kills),
                "recoveries_s": _spread([r for r in kills if r.strike.victim == victim]),
                "frozen": sum(r.strike.victim == victim for r in frozen),
                "frozen_recoveries_s": _spread([r for r in frozen if r.strike.victim == victim]),
            }
            for victim in VICTIMS
        },
        "final_miou": summary["miou_end"] if summary else None,
        "start_miou": summary["miou_start"] if summary else None,
        "restarts": summary["restarts"] if summary else None,
        "orphans": len(orphans),
        "trouble": [*trouble, *(audit.violations if audit else ()), *orphans],
    }


def is_well(found: dict[str, Any]) -> bool:
    """Whether nothing was lost, trained twice or left behind, and the run came to its end."""
    return not found["trouble"] and all(
        found[name] == 0 for name in ("lost", "trained_twice", "violations", "orphans")
    )


def table(found: dict[str, Any]) -> Table:
    """A row a victim, and one for all."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("struck", "kills", "p50 s", "max s", "frozen", "p50 s", "max s"):
        made.add_column(heading, justify="left" if heading == "struck" else "right")
    for victim, row in found["by_victim"].items():
        made.add_row(victim, *_cells(row))
    made.add_section()
    made.add_row("all", *_cells(found))
    return made


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        str(row["kills"]),
        *_figures(row["recoveries_s"]),
        str(row["frozen"]),
        *_figures(row["frozen_recoveries_s"]),
    ]


def _figures(spread: dict[str, float | None]) -> list[str]:
    return ["" if spread[key] is None else f"{spread[key]:.1f}" for key in ("p50", "max")]


def _spread(recoveries: Sequence[Recovery]) -> dict[str, float | None]:
    """Seconds; of those that the run has got over."""
    took = [r.took_s for r in recoveries if r.took_s is not None]

    def of(figure: Callable[[Sequence[float]], float]) -> float | None:
        return round(figure(took), 1) if took else None

    return {"p50": of(median), "max": of(max)}
