"""A seed → what is struck, how, and how long after what came before (pure).

The order of events and their pauses depend on the seed alone. When they happen does not: a strike
waits until the run has got over the ones before it, unless it is meant to meet them.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

Victim = Literal["redis", "reward", "rollout", "engine", "learner", "rank"]
VICTIMS: tuple[Victim, ...] = get_args(Victim)
"""rollout is the replica's own process, engine vLLM's below it, rank one of several
below the learner's launcher, or the learner itself."""

FROZEN_SHARE = 0.2
LONG_SHARE = 0.25
"""Of the frozen: longer than every lease and deadline of the demo."""
SHORT_S, LONG_S = (1.0, 5.0), (20.0, 35.0)
ON_TOP_SHARE = 0.15
PAUSE_S, ON_TOP_PAUSE_S = (1.0, 8.0), (0.0, 2.0)


@dataclass(frozen=True)
class Strike:
    """One event."""

    number: int
    victim: Victim
    frozen_s: float
    """SIGSTOP, and SIGCONT so much later; 0: SIGKILL."""
    pause_s: float
    """After the run has got over all earlier strikes; after the last strike itself if `on_top`."""
    on_top: bool
    which: float = 0.0
    """Share in [0, 1): where several processes have the victim's role, so far down their list."""

    @property
    def is_kill(self) -> bool:
        """Whether the victim does not come back."""
        return self.frozen_s == 0


def strikes(seed: int) -> Iterator[Strike]:
    """Strikes without an end."""
    chance = random.Random(f"chaos:{seed}")
    number = 0
    while True:
        number += 1
        frozen_s = 0.0
        victim = chance.choice(VICTIMS)
        if chance.random() < FROZEN_SHARE:
            frozen_s = chance.uniform(*(LONG_S if chance.random() < LONG_SHARE else SHORT_S))
        on_top = number > 1 and chance.random() < ON_TOP_SHARE
        pause_s = chance.uniform(*(ON_TOP_PAUSE_S if on_top else PAUSE_S))
        which = chance.random()
        yield Strike(number, victim, round(frozen_s, 1), round(pause_s, 1), on_top, which)
