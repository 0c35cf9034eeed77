"""Deltas are lossless, whatever the bits mean; what is no delta is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import WeightError
from common.weights import delta
from common.weights.delta import encode, patch


def bucket(num_bytes: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, generator=generator)


@settings(deadline=None)
@given(
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 40_000),
    st.floats(0, 1),
    st.integers(0, 1000),
    st.sampled_from([2**20, 256]),
)
def test_a_patched_bucket_is_the_new_one(
    unit: int, blocks: int, share: float, seed: int, cached: int
) -> None:
    old = bucket(16 * blocks, seed)
    new = old.clone()
    generator = torch.Generator().manual_seed(seed)
    changed = torch.rand(len(new), generator=generator) < share**4
    new[changed] ^= 1 + (changed[changed] * 7).to(torch.uint8)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(delta, "CACHED_BYTES", cached)
        encoded = encode(new, old, unit=unit)
    if encoded is None:
        return
    assert encoded.numel() < new.numel()
    found = old.clone()
    patch(found, encoded, unit=unit)
    assert torch.equal(found, new)


def test_two_percent_of_bfloat16_take_a_twenty_fifth() -> None:
    old = torch.zeros(2**21, dtype=torch.bfloat16)
    new = old.clone()
    generator = torch.Generator().manual_seed(0)
    new[torch.rand(len(new), generator=generator) < 0.02] = 1
    encoded = encode(new.view(torch.uint8), old.view(torch.uint8), unit=2)
    assert encoded is not None
    assert 20 < 2 * len(new) / encoded.numel() < 26


def test_negative_zero_and_nan_are_values_too() -> None:
    old = torch.tensor([0.0] * 60_000 + [float("nan")] * 4_000)
    new = old.clone()
    new[5], new[-1] = -0.0, 1.0
    encoded = encode(new.view(torch.uint8), old.view(torch.uint8), unit=4)
    assert encoded is not None
    assert encoded.numel() == 48, "two changes: NaNs that stay are none"
    patch(raw := old.clone().view(torch.uint8), encoded, unit=4)
    assert torch.equal(raw, new.view(torch.uint8))


def test_where_everything_changed_there_is_no_delta() -> None:
    old = bucket(4096, 0)
    assert encode(old ^ 255, old, unit=2) is None


def test_damaged_deltas_are_refused() -> None:
    old = bucket(4096, 0)
    new = old.clone()
    new[100] ^= 1
    encoded = encode(new, old, unit=2)
    assert encoded is not None
    with pytest.raises(WeightError, match="found a delta of"):
        patch(old, encoded[:16], unit=2)
    beyond = encoded.clone()
    beyond[16:18] = 255
    with pytest.raises(WeightError, match="beyond the 2048 values"):
        patch(old, beyond, unit=2)
