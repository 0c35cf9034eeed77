"""`[learner.dump_steps]`, `[learner.tracking]`: what is kept of a run for who looks at it."""

from typing import Literal

from common.config.fields import Count, PositiveInt, Section


class DumpSteps(Section):
    """`[learner.dump_steps]`: what a step's loss consumed, for `tempsamp replay`."""

    every: Count = 0
    """Steps between two dumps; 0: none."""
    keep: PositiveInt = 3
    """Newest dumps that are kept."""


class Tracking(Section):
    """`[learner.tracking]`: where curves are shown, beside metrics.jsonl and validation.jsonl."""

    tensorboard: bool = True
    """Event files in `<run_dir>/tensorboard`."""
    wandb_project: str | None = None
    """Project of Weights & Biases (extra `wandb`; its own login); None: nothing is sent."""
    wandb_mode: Literal["online", "offline"] = "online"
    """offline: into the run folder, to be sent later (`wandb sync`)."""
