"""`[learner.dump_steps]`: what is kept of a run for who looks into it afterwards."""

from common.config.fields import Count, PositiveInt, Section


class DumpSteps(Section):
    """`[learner.dump_steps]`: what a step's loss consumed, for `tempsamp replay`."""

    every: Count = 0
    """Steps between two dumps; 0: none."""
    keep: PositiveInt = 3
    """Newest dumps that are kept."""
