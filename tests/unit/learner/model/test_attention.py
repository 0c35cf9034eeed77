"""Answers that read their prompt's keys in place mix what copies of the prompt would give them."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from services.learner.model.attention import (
    CPU,
    CUDA,
    Kernels,
    attend_in_place,
    attend_to_copies,
    attend_to_prompt,
    by_answer,
    in_row,
    kernels_for,
)

SHAPES = [  # G, S, R, P, N, K, D
    (1, 5, 1, 9, 2, 2, 16),
    (2, 3, 4, 7, 4, 2, 8),
    (2, 2, 6, 5, 4, 1, 16),
    (1, 1, 3, 1, 2, 1, 32),
]


def inputs_of(
    shape: Sequence[int], *, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> tuple[Tensor, ...]:
    """Query, prompt's key and value, own key and value, strided as a decoder layer makes them."""
    groups, answers, tokens, prompt, heads, key_heads, size = shape
    random = torch.Generator().manual_seed(0)

    def part(length: int, count: int) -> Tensor:
        values = torch.randn(groups, length, count, size, generator=random, dtype=torch.float64)
        return values.to(device, dtype).transpose(1, 2).requires_grad_()

    own = answers * tokens
    return (
        part(own, heads),
        part(prompt, key_heads),
        part(prompt, key_heads),
        part(own, key_heads),
        part(own, key_heads),
    )


def in_place(parts: Sequence[Tensor], *, answers: int, kernels: Kernels = CPU) -> Tensor:
    query, key, value, own_key, own_value = parts
    prompt, own = (key, value), (own_key, own_value)
    return attend_in_place(
        query, prompt, own, num_answers=answers, scale=query.shape[-1] ** -0.5, kernels=kernels
    )


def copied(parts: Sequence[Tensor], *, answers: int) -> Tensor:
    query, key, value, own_key, own_value = parts
    prompt, own = (key, value), (own_key, own_value)
    scale = query.shape[-1] ** -0.5
    return attend_to_copies(query, prompt, own, num_answers=answers, scale=scale)


def by_hand(parts: Sequence[Tensor], *, answers: int) -> Tensor:
    """Softmax over the whole row of scores, one answer at a time."""
    query, key, value, own_key, own_value = parts
    repeats = query.shape[1] // key.shape[1]
    key, value, own_key, own_value = (
        part.repeat_interleave(repeats, dim=1) for part in (key, value, own_key, own_value)
    )
    mixed = []
    pieces = (part.chunk(answers, dim=2) for part in (query, own_key, own_value))
    for asked, seen, told in zip(*pieces, strict=True):
        scores = asked @ torch.cat([key, seen], dim=2).mT * asked.shape[-1] ** -0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1 + key.shape[2])
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        mixed.append(weights @ torch.cat([value, told], dim=2))
    return torch.cat(mixed, dim=2)


def gradients(mixed: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1.0, 2.0, mixed.numel(), dtype=torch.float64)
    return torch.autograd.grad(mixed, parts, weights.view_as(mixed).to(mixed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("way", [in_place, copied])
def test_both_ways_are_the_softmax_over_prompt_and_answer(way, shape: Sequence[int]) -> None:
    parts = inputs_of(shape)
    found, wanted = way(parts, answers=shape[1]), by_hand(parts, answers=shape[1])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    for got, want in zip(gradients(found, parts), gradients(wanted, parts), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_in_place_are_those_of_finite_differences(shape: Sequence[int]) -> None:
    assert torch.autograd.gradcheck(
        lambda *parts: in_place(parts, answers=shape[1]), inputs_of(shape), fast_mode=True
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_in_place_equals_copies_to_1e_6(shape: Sequence[int]) -> None:
    parts = inputs_of(shape, dtype=torch.float32)
    found, wanted = in_place(parts, answers=shape[1]), copied(parts, answers=shape[1])
    pairs = [(found, wanted), *zip(gradients(found, parts), gradients(wanted, parts), strict=True)]
    for got, want in pairs:
        assert float((got - want).detach().norm() / want.detach().norm()) < 1e-6


def test_large_scores_do_not_overflow_the_merge() -> None:
    parts = [(30 * part.detach()).requires_grad_() for part in inputs_of(SHAPES[1])]
    found, wanted = in_place(parts, answers=3), by_hand(parts, answers=3)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_every_answer_reads_its_own_keys_only() -> None:
    query, key, value, own_key, own_value = inputs_of(SHAPES[1])
    before = in_place((query, key, value, own_key, own_value), answers=3)
    changed = own_value.detach().clone()
    changed[:, :, 4:8] += 1  # the second of three answers
    after = in_place((query, key, value, own_key, changed), answers=3)
    moved = (before != after).any(dim=(0, 1, 3)).tolist()
    assert moved == [False] * 4 + [True] * 4 + [False] * 4


def test_a_row_of_answers_comes_back_from_one_answer_a_line() -> None:
    row = torch.arange(2 * 3 * 8 * 5).view(2, 3, 8, 5)
    assert torch.equal(in_row(by_answer(row, 4), 4), row)
    assert torch.equal(by_answer(row, 4)[1], row[0, :, 2:4])


def test_in_place_is_what_a_cpu_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value, own_key, own_value = inputs_of(SHAPES[1])
    assert kernels_for(query, key, value) is CPU

    def used(*_: object, **how: object) -> str:
        return f"in place for {how['num_answers']}"

    monkeypatch.setattr("services.learner.model.attention.attend_in_place", used)
    found = attend_to_prompt(query, (key, value), (own_key, own_value), num_answers=3, scale=1.0)
    assert found == "in place for 3"


def test_devices_without_a_kernel_get_copies() -> None:
    parts = [part.to("meta") for part in inputs_of(SHAPES[1])]
    assert kernels_for(*parts[:3]) is None
    found = attend_to_prompt(
        parts[0], (parts[1], parts[2]), (parts[3], parts[4]), num_answers=3, scale=1.0
    )
    assert found.shape == parts[0].shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shape", [(1, 8, 63, 1024, 8, 2, 128), (2, 3, 17, 300, 4, 1, 256)])
def test_flash_attention_in_place_is_as_close_to_float64_as_copies(shape: Sequence[int]) -> None:
    parts = inputs_of(shape, dtype=torch.bfloat16, device="cuda")
    exact = [part.detach().double().cpu().requires_grad_() for part in parts]
    assert kernels_for(*parts[:3]) is CUDA
    wanted = by_hand(exact, answers=shape[1])
    truth = [wanted.detach(), *gradients(wanted, exact)]

    def error(mixed: Tensor) -> list[float]:
        found = [mixed, *gradients(mixed, parts)]
        pairs = zip([part.detach() for part in found], truth, strict=True)
        return [float((got.double().cpu() - want).norm() / want.norm()) for got, want in pairs]

    in_place_error = error(in_place(parts, answers=shape[1], kernels=CUDA))
    for found, other in zip(in_place_error, error(copied(parts, answers=shape[1])), strict=True):
        assert found < 1.5 * other + 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_float32_on_cuda_gets_copies() -> None:
    parts = inputs_of(SHAPES[1], dtype=torch.float32, device="cuda")
    assert kernels_for(*parts[:3]) is None
