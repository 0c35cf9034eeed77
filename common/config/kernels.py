"""`[learner.kernels]`: what the decoder layers run in."""

from typing import Literal

from common.config.fields import Section


class Kernels(Section):
    """`[learner.kernels]`: speed alone, the mathematics stays."""

    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of each decoder layer that attends, once for all shapes; the first step waits
    for it. auto: on GPUs."""
    slow_delta_net: bool = False
    """Train gated delta nets (Qwen3.5) on a GPU without flash-linear-attention."""
