"""Prompt once per group: prompts and answers in one sequence → what separate sequences give.

All answers of a group share a prompt of up to 14k visual tokens, so `policy.py` sends it through
the model once. Everything in a decoder layer works token by token except two mixers, and only
those see the packing:

- attention: keys and values of the prompt are computed once and read by every answer
  (`attention.py`);
- Qwen3.5's gated delta net: the prompt's convolution and recurrent states fork into the answers.

Both are exact, keep the autograd graph, and sit inside one call of a decoder layer. So FSDP
gathers a layer once, and gradient checkpointing recomputes it like any other (no cache crosses
layers). Groups of unequal prompts stand in one sequence as segments (`batching/layout.py`).

Shapes, of one segment: G groups, P prompt tokens; of one of its blocks: S answers a group, R answer
tokens; L packed tokens, N attention heads or G·S answers, D head size, H hidden size.
"""

import functools
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from services.learner.batching.layout import Block, Packing, Segment
from services.learner.model.attention import attend_to_prompt, by_answer, in_row

ATTENTION = "shared_prefix"
"""Name under which transformers finds `shared_prefix_attention`."""
UNCOMPILED = "shared_prefix_uncompiled"
"""The same for layers that are compiled: the compiler calls it as it is."""


def install(model: Any) -> None:
    """Teach a Hugging Face vision-language model to take `packing=` in its text model's forward.

    Raises:
        ValueError: the text model has layers that are neither full attention nor a gated delta net.
    """
    from transformers import AttentionInterface

    text_config = model.config.text_config
    layer_types = set(getattr(text_config, "layer_types", None) or ["full_attention"])
    unknown = layer_types - {"full_attention", "linear_attention"}
    if unknown:
        raise ValueError(
            f"found text layers of type {sorted(unknown)}, wanted full_attention or "
            "linear_attention: shared prompts are exact for those only"
        )
    AttentionInterface.register(ATTENTION, shared_prefix_attention)
    text_config._attn_implementation = ATTENTION
    for layer in model.language_model.layers:
        if (net := getattr(layer, "linear_attn", None)) is not None:
            net.forward = MethodType(_delta_net_forward, net)


def keep_uncompiled(model: Any) -> None:
    """Have `install`'s attention left out of what torch.compile makes of this model's layers."""
    from transformers import AttentionInterface

    as_it_is = torch.compiler.disable(shared_prefix_attention)  # type: ignore[no-untyped-call]
    AttentionInterface.register(UNCOMPILED, as_it_is)
    model.config.text_config._attn_implementation = UNCOMPILED


def shared_prefix_attention(
    module: Any,
    query_1NLD: Tensor,
    key_1NLD: Tensor,
    value_1NLD: Tensor,
    attention_mask: None,
    *,
    packing: Packing,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface for packed sequences; returns [1, L, N, D].

    Dropout is ignored: the ratio of two policies has to be that of two deterministic functions.
    """
    views = (packing.split(packed, dim=2) for packed in (query_1NLD, key_1NLD, value_1NLD))
    mixed = [
        _attend_segment(segment, *tensors, scale=scaling)
        for segment, *tensors in zip(packing.segments, *views, strict=True)
    ]
    return torch.cat(mixed, dim=2).transpose(1, 2), None


def _attend_segment(
    segment: Segment, query: Tensor, key: Tensor, value: Tensor, *, scale: float
) -> Tensor:
    """[1, N, L, D] of one segment."""
    split = functools.partial(segment.split, dim=2)
    (query, queries), (key, keys), (value, values) = map(split, (query, key, value))
    mixed = scaled_dot_product_attention(
        query,
        key,
        value,
        is_causal=True,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    answers_mixed = [
        _attend_block(block, tensors, (key, value), scale=scale)
        for block, *tensors in zip(segment.blocks, queries, keys, values, strict=True)
    ]
    return segment.join(mixed, answers_mixed, dim=2)


def _attend_block(
    block: Block, answers: Sequence[Tensor], prompt: tuple[Tensor, Tensor], *, scale: float
) -> Tensor:
    """[G·S, N, R, D]; queries, keys and values of the answers, keys and values of the prompts."""
    num_answers = len(block.rows)
    query, key, value = (in_row(part, num_answers) for part in answers)
    mixed = attend_to_prompt(query, prompt, (key, value), num_answers=num_answers, scale=scale)
    return by_answer(mixed, num_answers)


def _delta_net_forward(net: Any, hidden_states: Tensor, *, packing: Packing, **_: Any) -> Tensor:
    """`Qwen3_5GatedDeltaNet.forward` for packed sequences: prompt, fork the states, answers."""
    forward = functools.partial(type(net).forward, net)
    mixed = []
    for segment, packed in zip(packing.segments, packing.split(hidden_states, dim=1), strict=True):
        prompt_GPH, answers = segment.split(packed, dim=1)
        state = DeltaNetState()
        mixed_GPH: Tensor = forward(prompt_GPH, cache_params=state)
        answers_mixed = [
            _delta_net_block(forward, answers_NRH, state.forked(segment, block))
            for block, answers_NRH in zip(segment.blocks, answers, strict=True)
        ]
        mixed.append(segment.join(mixed_GPH, answers_mixed, dim=1))
    return torch.cat(mixed, dim=1)


def _delta_net_block(
    forward: Callable[..., Tensor], answers_NRH: Tensor, state: "DeltaNetState"
) -> Tensor:
    num_tokens = answers_NRH.shape[1]
    if num_tokens == 1:
        # transformers would take its kernel for single tokens, and fla's has no backward.
        answers_NRH = torch.nn.functional.pad(answers_NRH, (0, 0, 0, 1))
    return forward(answers_NRH, cache_params=state)[:, :num_tokens]


class DeltaNetState:
    """The cache of one gated delta net between a prompt's pass and its answers' pass.

    Speaks transformers' cache interface for one layer. Its own cache writes states in place, which
    breaks autograd; this one assigns.
    """

    record_past = True
    """Keeps the net off the fused single-token kernel, which updates in place too."""

    def __init__(self) -> None:
        self.conv_states: Tensor | None = None
        self.recurrent_states: tuple[Tensor | None] = (None,)

    @property
    def layers(self) -> "DeltaNetState":
        """`cache.layers[i]` is this state, whatever i."""
        return self

    def __getitem__(self, layer_idx: int) -> Self:
        return self

    def has_previous_state(self, layer_idx: int, state_idx: int = 0) -> bool:
        """Whether a pass went before."""
        return self.conv_states is not None

    def update_conv_state(self, states: Tensor, layer_idx: int, *, conv_kernel_size: int) -> Tensor:
        """Append [..., L] inputs to the causal convolution's window; returns what it has to see."""
        if self.conv_states is None:
            padding = max(0, conv_kernel_size - states.shape[-1])
            states = torch.nn.functional.pad(states, (padding, 0))
        else:
            states = torch.cat([self.conv_states, states], dim=-1)
        self.conv_states = states[..., -conv_kernel_size:]
        return states

    def update_recurrent_state(self, state: Tensor, layer_idx: int) -> Tensor:
        """Keep the state after the last token."""
        self.recurrent_states = (state,)
        return state

    def forked(self, segment: Segment, block: Block) -> "DeltaNetState":
        """A copy for each answer of a block, in the same graph."""
        assert self.conv_states is not None
        assert self.recurrent_states[0] is not None
        fork = DeltaNetState()
        fork.conv_states = segment.fork(self.conv_states, block)
        fork.recurrent_states = (segment.fork(self.recurrent_states[0], block),)
        return fork
