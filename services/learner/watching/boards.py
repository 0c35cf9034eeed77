"""Figures of steps and validations where people look at curves: TensorBoard, Weights & Biases.

    a line of metrics.jsonl or validation.jsonl -> <run_dir>/tensorboard, and a W&B run if asked for

JSONL is always written (`metrics.append`) and is what the run itself goes back to; these follow it.
A board that fails is said once and left alone: a chart never costs a run.
"""

import importlib.util
import logging
from collections.abc import Mapping
from typing import Any, Protocol

from common import config
from common.errors import ConfigError

logger = logging.getLogger(__name__)

FLUSH_S = 10


class Board(Protocol):
    """Takes the figures of a step."""

    def show(self, figures: Mapping[str, float], *, step: int) -> None:
        """Names are those of the JSONL lines."""

    def close(self) -> None:
        """Everything is where it belongs."""


class TensorBoard:
    """Event files in `<run_dir>/tensorboard`; a resumed run takes back what it does again."""

    def __init__(self, run: config.Run, *, resumed_at: int | None) -> None:
        """`resumed_at`: step of the checkpoint; None for a fresh run."""
        from tensorboardX import SummaryWriter

        purge = None if resumed_at is None else resumed_at + 1
        folder = run.learner.run_dir / "tensorboard"
        self._writer = SummaryWriter(str(folder), purge_step=purge, flush_secs=FLUSH_S)

    def show(self, figures: Mapping[str, float], *, step: int) -> None:
        """One scalar a figure."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class WeightsAndBiases:
    """One run a run file: resumed under its own id."""

    def __init__(self, run: config.Run, *, tag: str) -> None:
        """`tag`: random name of this run, kept when it is resumed."""
        import wandb

        tracking = run.learner.tracking
        self._run = wandb.init(
            project=tracking.wandb_project,
            mode=tracking.wandb_mode,
            name=run.shared.run_id,
            id=f"{run.shared.run_id}-{tag}",
            resume="allow",
            dir=str(run.learner.run_dir),
            config=run.model_dump(mode="json"),
        )

    def show(self, figures: Mapping[str, float], *, step: int) -> None:
        """All of a line at once."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Tell W&B that the run is over."""
        self._run.finish()


class Boards:
    """All that a run has; none of them can end it."""

    def __init__(self, boards: Mapping[str, Board]) -> None:
        self._boards = dict(boards)

    @classmethod
    def of(cls, run: config.Run, *, tag: str, resumed_at: int | None) -> "Boards":
        """Those of `[learner.tracking]`."""
        tracking, boards = run.learner.tracking, dict[str, Board]()
        if tracking.tensorboard:
            boards["tensorboard"] = TensorBoard(run, resumed_at=resumed_at)
        if tracking.wandb_project is not None:
            boards["wandb"] = WeightsAndBiases(run, tag=tag)
        return cls(boards)

    def show(self, line: Mapping[str, float], *, step: int) -> None:
        """A step or validation line."""
        figures = {key: value for key, value in line.items() if "/" in key}
        for name in list(self._boards):
            self._try(name, "show", figures, step=step)

    def close(self) -> None:
        """At the end of the run."""
        for name in list(self._boards):
            self._try(name, "close")

    def _try(self, name: str, what: str, *args: Any, **kwargs: Any) -> None:
        try:
            getattr(self._boards[name], what)(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - third parties, disks and networks: a chart at most
            logger.warning("a board is left alone", extra={"board": name, "error": repr(error)})
            del self._boards[name]


def refuse_missing(run: config.Run) -> None:
    """What `[learner.tracking]` needs has to be installed; said before the model loads.

    Raises:
        ConfigError: it is not; names knob and package.
    """
    tracking = run.learner.tracking
    wanted = {
        "tensorboard = true": "tensorboardX" if tracking.tensorboard else None,
        f"wandb_project = {tracking.wandb_project!r}": "wandb" if tracking.wandb_project else None,
    }
    for knob, package in wanted.items():
        if package is not None and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"learner.tracking: found {knob} and no package {package}, wanted it installed "
                f"(pip install {package}), or the setting off"
            )
