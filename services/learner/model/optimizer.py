"""The policy's trained parameters → AdamW, fused, in two groups: decayed and not.

Weight decay pulls matrices towards zero. Of a norm's gain, a bias or a decay rate of the gated
delta net, zero is no natural value: vectors are left out, as is usual. `step.py` asks,
`state/checkpoint.py` saves.
"""

import torch
from torch import nn

from common.config.learner import Optimizer
from services.learner.model.policy import Policy


def adamw(policy: Policy, settings: Optimizer) -> torch.optim.AdamW:
    """One update over all parameters that are trained; sharded ones too.

    Fused: one kernel for a whole group instead of a dozen operations for each parameter.
    """
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if decays(parameter)]
    vectors = [parameter for parameter in trained if not decays(parameter)]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=settings.lr,
        betas=settings.betas,
        fused=True,
    )


def decays(parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices, kernels of convolutions and embeddings."""
    return parameter.ndim > 1
