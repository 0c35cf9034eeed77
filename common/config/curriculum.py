"""`[[learner.phases]]`, `[learner.pool]`, `[learner.early_stop]`: what is asked, when, how long."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from common.config.fields import Count, FormatWeight, PositiveInt, Section
from common.config.shared import Shared
from common.messages import Mode, Strategy, ThinkInjection

Share = Annotated[float, Field(ge=0, le=1)]


class Phase(Section):
    """One table of `[[learner.phases]]`: a part of the run, in the order of the file.

    What is None here is as `[shared]` says. A phase ends by the first of its ends that comes; the
    last one has none.
    """

    mode: Mode = "answer"
    strategy: Strategy | None = None
    """shared.strategy of this phase. sft is a warm-up: in answer mode one answer is generated
    beside the true one, for the figures."""
    max_tokens: PositiveInt | None = None
    """Longest answer, at most shared.sampling.max_tokens: what engines and learner are sized by."""
    format_weight: FormatWeight | None = None
    """shared.scoring.format_weight of this phase."""
    think_injection: ThinkInjection | None = None
    """shared.scoring.think_injection of this phase (SPEC B3)."""
    steps: PositiveInt | None = None
    """Ends when prompts for so many steps have been fed."""
    epochs: PositiveInt | None = None
    """Ends at this epoch boundary after its first prompt, the first, the second …"""
    plateau: PositiveInt | None = None
    """Ends when so many validations brought no improvement (learner.early_stop.min_delta)."""

    @property
    def ends(self) -> bool:
        """Whether it has an end of its own."""
        return any(end is not None for end in (self.steps, self.epochs, self.plateau))


class EarlyStop(Section):
    """`[learner.early_stop]`: the run ends where validation stops to improve."""

    patience: PositiveInt | None = None
    """Validations of the last phase without improvement, after which the run ends with a
    checkpoint and exit code 0; None: it runs to learner.steps."""
    min_delta: Share = 0.0
    """By how much the best mean IoU (0 to 1) has to be passed to count as improvement; also for
    phases that end at a plateau."""


class Pool(Section):
    """`[learner.pool]`: which rows are asked. Rows that are left out stand in the ledger."""

    subset: PositiveInt | None = None
    """Only so many rows, drawn by seed (few-shot); a smaller subset is part of a larger one."""
    subset_seed: Count | None = None
    """None: shared.seed."""
    min_difficulty: Share | None = None
    """Of the rows' own field, 0 (easy) to 1; a row without one fails any bound."""
    max_difficulty: Share | None = None
    drop_solved: Share | None = None
    """A row whose answers of the policy all had at least this IoU sits out (reward where a task
    has no IoU); None: never."""
    drop_hopeless: Share | None = None
    """A row of whose answers none had more than this IoU sits out; None: never."""
    rest_epochs: PositiveInt = 1
    """Epochs that such a row sits out before it is asked again."""

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        for low, high in (("min_difficulty", "max_difficulty"), ("drop_hopeless", "drop_solved")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least >= most:
                raise ValueError(
                    f"learner.pool.{low}: found {least} while learner.pool.{high} is {most}, "
                    "wanted less"
                )
        return self


def refuse_modes(settings: Any) -> Any:
    """`learner.modes` of older run files."""
    if isinstance(settings, dict) and "modes" in settings:
        raise ValueError(
            f"learner.modes: found {settings['modes']!r}, wanted [[learner.phases]], one table a "
            'mode: mode = "answer" with epochs = 1, then mode = "think" is the hybrid of '
            '["answer", "think"]; one mode alone is mode = "think" without an end'
        )
    return settings


def check_phases(phases: tuple[Phase, ...], *, shared: Shared, validates: bool) -> None:
    """What phases need of each other and of the rest of the run file.

    Raises:
        ValueError: names the phase from 1, and the knob.
    """
    for number, phase in enumerate(phases, 1):
        where = f"learner.phases: number {number}"
        is_last = number == len(phases)
        if phase.ends == is_last:
            raise ValueError(
                f"{where}: found an end in the last phase, wanted none: learner.steps or "
                "learner.early_stop end the run"
                if is_last
                else f"{where}: found no end, wanted steps, epochs or plateau: the next phase "
                "would never begin"
            )
        if phase.plateau is not None and not validates:
            raise ValueError(f"{where}: found plateau, wanted learner.validation.rows with it")
        longest = shared.sampling.max_tokens
        if phase.max_tokens is not None and phase.max_tokens > longest:
            raise ValueError(
                f"{where}: found max_tokens = {phase.max_tokens}, wanted at most "
                f"shared.sampling.max_tokens, {longest}"
            )
        option = phase.think_injection or shared.scoring.think_injection
        strategy = phase.strategy or shared.strategy
        if strategy == "sft" and phase.mode == "think" and option == "none":
            raise ValueError(
                f'{where}: found strategy "sft" with think_injection "none", wanted "bare" or '
                '"splice": nothing would be trained on'
            )
