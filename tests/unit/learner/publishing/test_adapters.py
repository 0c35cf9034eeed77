"""What a capture takes from adapters is what PEFT merges on that device, and follows them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import Lora
from services.learner.model.policy import Policy, load_policy
from services.learner.parallel import Ranks
from services.learner.publishing.snapshot import Snapshot
from tests.fixtures.learner.learner_rank import fill_adapters
from tests.fixtures.learner.tiny_models import Architecture


def merged_by_peft(policy: Policy, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Base and `get_delta_weight` of each adapted layer, added in float32."""
    layers: dict[str, Any] = dict(policy.model.named_modules())
    adapters = policy.adapters
    assert adapters is not None
    return {
        name: (
            weight.detach().float()
            + layers[name.removesuffix(".weight")].get_delta_weight("default")
        ).to(dtype)
        for name, weight in policy.named_weights()
        if name in adapters
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_weights_are_captured_as_they_are_then(
    ranks: Ranks, tiny_model: Callable[[Architecture], Path], dtype: torch.dtype
) -> None:
    policy = load_policy(tiny_model("qwen3_5"), adapters=Lora(rank=4), device=ranks.device)
    adapters = policy.adapters
    assert adapters is not None
    snapshot = Snapshot(
        lambda: ((name, w) for name, w in policy.named_weights() if name in adapters),
        dtype=dtype,
        bucket_bytes=10_000,
        ranks=ranks,
        place="device",
        deltas=False,
        values=adapters.merged_values,
    )
    for change in (False, True):
        if change:
            fill_adapters(policy)
        wanted = merged_by_peft(policy, dtype)
        snapshot.begin()
        snapshot.capture()
        stream = torch.cat([bucket.clone() for bucket in snapshot.buckets(deltas=False)])
        found = dict(snapshot.layout.views(stream))
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
