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
    st.integers(1, 40_000),
    st.floats(0, 1),
    st.integers(0, 1000),
    st.booleans(),
)
def test_a_patched_bucket_is_the_new_one(
    blocks: int, share: float, seed: int, as_on_gpu: bool
) -> None:
    old = bucket(16 * blocks, seed)
    new = old.clone()
    generator = torch.Generator().manual_seed(seed)
    changed = torch.rand(len(new), generator=generator) < share**4
    new[changed] ^= 1 + (changed[changed] * 7).to(torch.uint8)
    encoded = encode(new, old)
    with pytest.MonkeyPatch.context() as patched:
        if as_on_gpu:  # its operations run anywhere
            patched.setattr(delta, "_found_on_cpu", delta._found_on_gpu)
            patched.setattr(delta, "_put_on_cpu", delta._put_on_gpu)
        again = encode(new, old)
        if encoded is None or again is None:
            assert encoded is again
            return
        assert torch.equal(again, encoded), "one delta, whoever finds it"
        assert encoded.numel() < new.numel()
        found = old.clone()
        patch(found, encoded)
        assert torch.equal(found, new)


def test_two_percent_of_bfloat16_take_a_twenty_fifth() -> None:
    old = torch.zeros(2**21, dtype=torch.bfloat16)
    new = old.clone()
    generator = torch.Generator().manual_seed(0)
    new[torch.rand(len(new), generator=generator) < 0.02] = 1
    encoded = encode(new.view(torch.uint8), old.view(torch.uint8))
    assert encoded is not None
    assert 20 < 2 * len(new) / encoded.numel() < 26


def test_negative_zero_and_nan_are_values_too() -> None:
    old = torch.tensor([0.0] * 60_000 + [float("nan")] * 4_000)
    new = old.clone()
    new[5], new[-1] = -0.0, 1.0
    encoded = encode(new.view(torch.uint8), old.view(torch.uint8))
    assert encoded is not None
    assert encoded.numel() == 48, "three words of two values: NaNs that stay are none"
    patch(raw := old.clone().view(torch.uint8), encoded)
    assert torch.equal(raw, new.view(torch.uint8))


def test_where_everything_changed_there_is_no_delta() -> None:
    old = bucket(4096, 0)
    assert encode(old ^ 255, old) is None


def test_damaged_deltas_are_refused() -> None:
    old = bucket(4096, 0)
    new = old.clone()
    new[100] ^= 1
    encoded = encode(new, old)
    assert encoded is not None
    with pytest.raises(WeightError, match="found a delta of"):
        patch(old, encoded[:16])
    beyond = encoded.clone()
    beyond[16:18] = 255
    with pytest.raises(WeightError, match="beyond the 2048 words"):
        patch(old, beyond)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda:0"], indirect=True)
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_a_gpu_finds_what_a_cpu_does(
    device: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "_found_on_cpu", delta._found_on_gpu)  # the same, as tested above
    old = bucket(16 * 300_001, 0)
    new = old.clone()
    new[torch.rand(len(new), generator=torch.Generator().manual_seed(1)) < share / 2] ^= 1
    encoded = encode(new, old)
    found = encode(new.to(device), old.to(device))
    if encoded is None or found is None:
        assert encoded is found
        return
    assert torch.equal(found.cpu(), encoded)
    patched = old.to(device)
    patch(patched, found)
    assert torch.equal(patched.cpu(), new)
