"""What is compared; `rules.md` beside it has the rules, written before any of the results.

Written on 2026-11-27; those of `full` on 2026-11-21. The page that is made of the records shows
them (`page`). A rule that changes after results exist makes those results another comparison.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Final

METHOD_SETTINGS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        **{name: (name, ()) for name in ("grpo", "mixed", "tempsamp", "sft")},
        **{name: (name, ()) for name in ("downscale", "anchor")},
        "tempsamp-set": ("tempsamp", ('shared.scoring.reward="iou+wasserstein"',)),
    }
)
"""What a comparison calls a method → the demo's method, and settings over the regime's run file."""
EVERYWHERE = ("grpo", "mixed", "tempsamp", "sft")
METHODS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "full": EVERYWHERE,
        "few": EVERYWHERE,
        "noisy": (*EVERYWHERE, "downscale", "anchor", "tempsamp-set"),
        "long": EVERYWHERE,
        "several": EVERYWHERE,
    }
)
"""Regime → methods."""
DEFAULT_SEEDS = (0, 1, 2, 3, 4)
SPLIT: Final = "test"


def rule(name: str) -> str:
    """The rule of a regime, or of `all`, as Markdown."""
    text = resources.files("jobs.demo.comparing").joinpath("rules.md").read_text(encoding="utf-8")
    sections = dict(part.split("\n", 1) for part in f"\n{text}".split("\n## ")[1:])
    return sections[name].strip()


@dataclass(frozen=True)
class Claim:
    """A difference that the paper reports, as it can be seen here."""

    method: str
    against: str
    paper: str
    """What it says, with its figures (Charades-STA, G = 4, R1@.7)."""


CLAIMS = (
    Claim("tempsamp", "grpo", "shaping 49.6, GRPO 46.0: higher"),
    Claim("tempsamp", "mixed", "shaping 49.6, raw injection 41.3: higher"),
    Claim("mixed", "grpo", "raw injection 41.3, GRPO 46.0: lower"),
    Claim("downscale", "grpo", "downscaled rewards 48.1, GRPO 46.0: higher"),
    Claim("anchor", "grpo", "anchored advantages 49.1, GRPO 46.0: higher"),
    Claim("tempsamp", "downscale", "shaping 49.6, downscaled rewards 48.1: higher"),
    Claim("tempsamp", "anchor", "shaping 49.6, anchored advantages 49.1: higher"),
    Claim("tempsamp", "sft", "no figure of SFT on the same labels was read"),
    Claim("mixed", "sft", "no figure"),
    Claim("sft", "grpo", "no figure"),
    Claim("tempsamp-set", "tempsamp", "not in the paper (TimeLens2's reward)"),
)
"""Differences looked at, in every regime that has both methods."""
