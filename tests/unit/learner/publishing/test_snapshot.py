"""What a capture takes from FSDP's shards is the policy, bit for bit."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from common.errors import WeightError
from common.weights.delta import patch
from common.weights.group import side_stream
from common.weights.layout import Layout, describe, num_bytes
from services.learner.parallel import Ranks
from services.learner.publishing import shards
from services.learner.publishing.snapshot import Snapshot
from tests.fixtures.learner.ranks import RunRanks
from tests.fixtures.learner.tiny_models import Architecture

ROOT = Path(__file__).parents[4]
DEADLINE_S = 150


def test_shards_of_three_ranks_are_put_together(
    tiny_model: Callable[[Architecture], Path], run_ranks: RunRanks
) -> None:
    """Tied heads, Qwen3.5's convolutions, decay and time-step parameters, and merged adapters."""
    models = (str(tiny_model(name)) for name in ("qwen3_vl", "qwen3_5", "qwen2_5_vl"))
    run_ranks(3, "tests.fixtures.weights.capture_rank", *models, timeout_s=DEADLINE_S)


shapes = st.lists(st.lists(st.integers(1, 7), max_size=3).map(tuple), min_size=1, max_size=5)


@settings(deadline=None)
@given(shapes, st.integers(16, 200), st.sampled_from([torch.float32, torch.bfloat16]))
def test_any_shapes_in_any_buckets(
    found: list[tuple[int, ...]], bucket_bytes: int, dtype: torch.dtype
) -> None:
    tensors = [torch.randn(shape) for shape in found]
    slices = [describe(str(i), shape=t.shape, dtype=dtype) for i, t in enumerate(tensors)]
    layout = Layout.of(slices, bucket_bytes=bucket_bytes)
    stream = torch.zeros(layout.num_bytes, dtype=torch.uint8)
    own = [shards.local(tensor) for tensor in tensors]
    for (start, end), by_rank in zip(
        layout.buckets, shards.parts(layout, tensors, world_size=1), strict=True
    ):
        shards.pack(stream[start:end], own, by_rank.get(0, []), layout=layout, densely=False)
    for (_, view), tensor in zip(layout.views(stream), tensors, strict=True):
        assert torch.equal(view, tensor.to(dtype))
    assert sum(num_bytes(item) for item in slices) == sum(
        shards.num_bytes(part, layout)
        for by_rank in shards.parts(layout, tensors, world_size=1)
        for owned in by_rank.values()
        for part in owned
    )


def test_weights_that_are_computed_are_captured_as_they_are_then(ranks: Ranks) -> None:
    """As an adapter merged into its base would be."""
    base, low = (
        nn.Parameter(fill(8, 8, device=ranks.device)) for fill in (torch.ones, torch.zeros)
    )
    snapshot = Snapshot(
        lambda: iter([("merged", base + low)]),
        dtype=torch.float32,
        bucket_bytes=64,
        ranks=ranks,
        place="device",
        deltas=False,
    )
    for value in (0.0, 0.5):
        with torch.no_grad():
            low.fill_(value)
        snapshot.begin()
        snapshot.capture()
        stream = torch.cat(list(snapshot.buckets(deltas=False)))
        assert dict(snapshot.layout.views(stream))["merged"].unique().tolist() == [1 + value]


def test_a_capture_that_breaks_ends_who_follows_it(ranks: Ranks) -> None:
    broken = iter([[("a", torch.zeros(n, device=ranks.device))] for n in (64, 3)])
    snapshot = Snapshot(
        lambda: iter(next(broken)),
        dtype=torch.float32,
        bucket_bytes=64,
        ranks=ranks,
        place="device",
        deltas=False,
    )
    snapshot.begin()
    with pytest.raises(WeightError, match="could not be gathered"):
        snapshot.capture()
    with pytest.raises(WeightError, match="the capture broke"):
        list(snapshot.buckets(deltas=False))


@pytest.mark.parametrize("place", ["device", "host"])
def test_what_is_computed_after_a_capture_does_not_show_in_it(ranks: Ranks, place: str) -> None:
    """A step may go on at once; who sends follows the capture on a stream of its own."""
    device = ranks.device
    weights = nn.Parameter(torch.zeros(4_000_000, device=device))
    snapshot = Snapshot(
        lambda: iter([("a", weights)]),
        dtype=torch.bfloat16,
        bucket_bytes=2**20,
        ranks=ranks,
        place=place,  # type: ignore[arg-type]
        deltas=True,
    )
    sent: list[torch.Tensor] = []

    def follow(deltas: bool) -> None:
        with torch.cuda.stream(side_stream(device)):
            sent[:] = [bucket.cpu() for bucket in snapshot.buckets(deltas=deltas)]

    held = torch.zeros(snapshot.layout.num_bytes, dtype=torch.uint8, device=device)
    for version in range(1, 6):
        with torch.no_grad():
            weights[version::100] = version
        snapshot.begin()
        deltas = snapshot.has_deltas
        following = threading.Thread(target=follow, args=(deltas,))
        following.start()
        wanted = weights.detach().bfloat16().cpu()
        snapshot.capture()
        with torch.no_grad():
            weights += 1
        following.join()
        for (start, end), bucket in zip(snapshot.layout.buckets, sent, strict=True):
            if deltas and bucket.numel() < end - start:
                patch(held[start:end], bucket.to(device))
            else:
                held[start:end] = bucket
        assert torch.equal(held.cpu().view(torch.bfloat16), wanted)
