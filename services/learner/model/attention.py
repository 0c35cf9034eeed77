"""Answers that read their prompt's keys in place: two attentions, merged by log-sum-exp.

`prefix.py` calls this for the answers of a packed sequence. An answer attends to the whole prompt
and, causally, to itself. Copying the prompt's keys and values in front of each answer's is one way
(`attend_to_copies`): S copies of up to 16k tokens a layer. Here all answers of a group are one long
query against the prompt's keys where they lie, a short causal call gives the rest, and

    lse = logaddexp(lse_prompt, lse_own)
    out = exp(lse_prompt - lse) out_prompt + exp(lse_own - lse) out_own

is the softmax over both. A FlashAttention backward that is given this `out` and `lse` gives the
exact gradient of its part, so nothing else has to be differentiated.

Kernels are PyTorch's own: FlashAttention-2 on CUDA (half precision), and its CPU kernel. One H200,
16k + 8 x 256 tokens, a layer forward and backward: 20.8 ms, copying 23.3; gradients equal to 9e-4
in bfloat16 (a prototype of this code, 2026-11-26). One CPU core, answers alone: 128 + 8 x 15 tokens
.67 against .71 ms, 512 + 8 x 15 1.27 against 1.53, 4 heads over 2 there 2.7 against 8.1.

Shapes: G groups, S answers a group, R answer tokens, A = S·R, P prompt tokens, N heads, K key
heads (N is a multiple), D head size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

MIN_CAPABILITY = (8, 0)
"""Ampere: what FlashAttention-2 needs."""
HEAD_SIZE_MULTIPLE = 8
"""Its kernels take no other head sizes without padding."""

Forward = Callable[..., tuple[Tensor, Tensor, tuple[Any, ...]]]
"""(query, key, value, causal, scale) → output, log-sum-exp [.., queries], what backward wants."""
Backward = Callable[..., tuple[Tensor, Tensor, Tensor]]
"""(gradient, query, key, value, output, log-sum-exp, kept, causal, scale) → three gradients."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """One implementation of attention that shows its log-sum-exp."""

    forward: Forward
    backward: Backward


def attend_to_prompt(
    query_GNAD: Tensor,
    prompt: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    *,
    num_answers: int,
    scale: float,
) -> Tensor:
    """[G, N, A, D] mixed values of all answers; see `attend_in_place`, which it is where it can."""
    kernels = kernels_for(query_GNAD, *prompt)
    if kernels is None:
        return attend_to_copies(query_GNAD, prompt, own, num_answers=num_answers, scale=scale)
    return attend_in_place(
        query_GNAD, prompt, own, num_answers=num_answers, scale=scale, kernels=kernels
    )


def attend_in_place(
    query_GNAD: Tensor,
    prompt: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    *,
    num_answers: int,
    scale: float,
    kernels: Kernels,
) -> Tensor:
    """[G, N, A, D] mixed values of all answers, without a copy of the prompt's keys.

    Args:
        query_GNAD: of the answers, one after the other.
        prompt: keys and values [G, K, P, D].
        own: keys and values [G, K, A, D].
        num_answers: S.
        scale: of the scores.
        kernels: `kernels_for`.
    """
    mixed_GNAD: Tensor = _InPlace.apply(  # type: ignore[no-untyped-call]
        query_GNAD, *prompt, *own, num_answers, scale, kernels
    )
    return mixed_GNAD


def attend_to_copies(
    query_GNAD: Tensor,
    prompt: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    *,
    num_answers: int,
    scale: float,
) -> Tensor:
    """The same through PyTorch's SDPA, with the prompt's keys and values in front of each answer's.

    For what no kernel above takes (float32 on CUDA), and to compare with.
    """
    query_ZNRD = by_answer(query_GNAD, num_answers)
    key_ZKLD, value_ZKLD = (
        torch.cat([_copies(of_prompt, num_answers), by_answer(of_answers, num_answers)], dim=2)
        for of_prompt, of_answers in zip(prompt, own, strict=True)
    )
    mixed_ZNRD = scaled_dot_product_attention(
        query_ZNRD,
        key_ZKLD,
        value_ZKLD,
        attn_mask=causal_lower_right(query_ZNRD.shape[2], key_ZKLD.shape[2]),
        scale=scale,
        enable_gqa=query_ZNRD.shape[1] != key_ZKLD.shape[1],
    )
    return in_row(mixed_ZNRD, num_answers)


def kernels_for(query: Tensor, key: Tensor, value: Tensor) -> Kernels | None:
    """Kernels that take these tensors ([..., heads, tokens, D]), if any."""
    if query.device.type == "cpu":
        return CPU
    if query.device.type != "cuda" or query.shape[-1] % HEAD_SIZE_MULTIPLE:
        return None
    if torch.cuda.get_device_capability(query.device) < MIN_CAPABILITY:
        return None
    wanted = SDPAParams(query, key, value, None, 0.0, False, query.shape[1] != key.shape[1])
    return CUDA if can_use_flash_attention(wanted) else None


def by_answer(row: Tensor, num_answers: int) -> Tensor:
    """[G, N, A, ...] → [G·S, N, R, ...]."""
    return torch.unflatten(row, 2, (num_answers, -1)).movedim(2, 1).flatten(0, 1)


def in_row(answers: Tensor, num_answers: int) -> Tensor:
    """The inverse of `by_answer`."""
    return torch.unflatten(answers, 0, (-1, num_answers)).movedim(1, 2).flatten(2, 3)


def _copies(of_prompt: Tensor, num_answers: int) -> Tensor:
    """[G, ...] → [G·S, ...]."""
    copies = of_prompt[:, None].expand(-1, num_answers, *of_prompt.shape[1:])
    return copies.flatten(0, 1)


class _InPlace(torch.autograd.Function):
    """See the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        prompt_key: Tensor,
        prompt_value: Tensor,
        own_key: Tensor,
        own_value: Tensor,
        num_answers: int,
        scale: float,
        kernels: Kernels,
    ) -> Tensor:
        of_prompt, lse_prompt, kept_prompt = kernels.forward(
            query, prompt_key, prompt_value, False, scale
        )
        own = (by_answer(part, num_answers) for part in (query, own_key, own_value))
        of_own, lse_own, kept_own = kernels.forward(*own, True, scale)
        of_own, lse_own = (in_row(part, num_answers) for part in (of_own, lse_own))
        lse = torch.logaddexp(lse_prompt, lse_own)
        share_prompt, share_own = ((part - lse).exp()[..., None] for part in (lse_prompt, lse_own))
        mixed = (share_prompt * of_prompt + share_own * of_own).to(query.dtype)
        ctx.save_for_backward(
            query, prompt_key, prompt_value, own_key, own_value, mixed, lse, *kept_prompt, *kept_own
        )
        ctx.num_kept, ctx.num_answers = len(kept_prompt), num_answers
        ctx.scale, ctx.kernels = scale, kernels
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, prompt_key, prompt_value, own_key, own_value, mixed, lse, *kept = ctx.saved_tensors
        kernels, scale = ctx.kernels, ctx.scale
        by_prompt, prompt_key, prompt_value = kernels.backward(
            gradient,
            query,
            prompt_key,
            prompt_value,
            mixed,
            lse,
            kept[: ctx.num_kept],
            False,
            scale,
        )
        parts = (
            by_answer(part, ctx.num_answers).contiguous()
            for part in (gradient, query, own_key, own_value, mixed, lse)
        )
        own = kernels.backward(*parts, kept[ctx.num_kept :], True, scale)
        by_own, own_key, own_value = (in_row(part, ctx.num_answers) for part in own)
        gradients = (by_prompt + by_own, prompt_key, prompt_value, own_key, own_value)
        return *gradients, None, None, None


def _cuda_forward(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    mixed, lse, _, _, _, _, seed, offset, _ = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, 0.0, causal, False, scale=scale
    )
    return mixed, lse, (seed, offset)


def _cuda_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mixed: Tensor,
    lse: Tensor,
    kept: tuple[Tensor, Tensor],
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = (
        torch.ops.aten._scaled_dot_product_flash_attention_backward(
            gradient,
            query,
            key,
            value,
            mixed,
            lse.contiguous(),
            None,
            None,
            query.shape[2],
            key.shape[2],
            0.0,
            causal,
            *kept,
            scale=scale,
        )
    )
    return gradients


def _cpu_forward(
    query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    mixed, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, scale=scale
    )
    return mixed, lse, ()


def _cpu_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mixed: Tensor,
    lse: Tensor,
    kept: tuple[()],
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = (
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, query, key, value, mixed, lse, 0.0, causal, scale=scale
        )
    )
    return gradients


CUDA = Kernels(_cuda_forward, _cuda_backward)
CPU = Kernels(_cpu_forward, _cpu_backward)
