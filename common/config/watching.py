"""`[learner.dump_steps]`, `[learner.keep_groups]`, `[learner.tracking]`: for who looks at a run."""

from typing import Literal

from common.config.fields import Count, PositiveInt, Section


class DumpSteps(Section):
    """`[learner.dump_steps]`: what a step's loss consumed, for `tempsamp replay`."""

    every: Count = 0
    """Steps between two dumps; 0: none."""
    keep: PositiveInt = 3
    """Newest dumps that are kept."""


class KeepGroups(Section):
    """`[learner.keep_groups]`: groups with answers and advantages in `<run_dir>/groups`, which
    `tempsamp dash` shows."""

    every: Count = 1
    """Steps between two that are kept; 0: none."""
    most_mb: PositiveInt = 256
    """Room for all of them. Beyond it older steps are thinned out: the newest stay dense, and some
    of every part of the run."""


class Tracking(Section):
    """`[learner.tracking]`: where curves are shown, beside metrics.jsonl and validation.jsonl."""

    tensorboard: bool = True
    """Event files in `<run_dir>/tensorboard`."""
    wandb_project: str | None = None
    """Project of Weights & Biases (extra `wandb`; its own login); None: nothing is sent."""
    wandb_mode: Literal["online", "offline"] = "online"
    """offline: into the run folder, to be sent later (`wandb sync`)."""
