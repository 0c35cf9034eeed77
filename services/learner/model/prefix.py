"""Prompt once per group: `prompt, answer 1, ..., answer S` packed → what S separate sequences give.

All answers of a group share a prompt of up to 14k visual tokens, so `policy.py` sends it through
the model once. Everything in a decoder layer works token by token except two mixers, and only
those see the packing:

- attention: keys and values of the prompt are computed once and read by every answer
  (`attention.py`);
- Qwen3.5's gated delta net: the prompt's convolution and recurrent states fork into the answers.

Both are exact, keep the autograd graph, and sit inside one call of a decoder layer. So FSDP
gathers a layer once, and gradient checkpointing recomputes it like any other (no cache crosses
layers).

Shapes: G groups, S answers a group, P prompt tokens, R answer tokens, L = P + S·R packed tokens,
N attention heads, D head size, H hidden size.
"""

import functools
from dataclasses import dataclass
from types import MethodType
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from services.learner.model.attention import attend_to_prompt

ATTENTION = "shared_prefix"
"""Name under which transformers finds `shared_prefix_attention`."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How a packed sequence is laid out."""

    prompt_tokens: int
    num_answers: int
    answer_tokens: int
    """Tokens of each answer, padding included."""

    def split(self, packed: Tensor, *, dim: int) -> tuple[Tensor, Tensor]:
        """[..., L, ...] → prompts [G, ..., P, ...] and answers [G·S, ..., R, ...]."""
        prompt, answers = packed.tensor_split([self.prompt_tokens], dim=dim)
        answers = torch.unflatten(answers, dim, (self.num_answers, self.answer_tokens))
        return prompt, answers.movedim(dim, 1).flatten(0, 1)

    def join(self, prompt: Tensor, answers: Tensor, *, dim: int) -> Tensor:
        """The inverse of `split`."""
        answers = torch.unflatten(answers, 0, (-1, self.num_answers)).movedim(1, dim)
        return torch.cat([prompt, answers.flatten(dim, dim + 1)], dim=dim)

    def fork(self, prompt: Tensor) -> Tensor:
        """[G, ...] → [G·S, ...]: one copy an answer; gradients of the copies add up."""
        copies = prompt[:, None].expand(-1, self.num_answers, *prompt.shape[1:])
        return copies.flatten(0, 1)


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


def shared_prefix_attention(
    module: Any,
    query_GNLD: Tensor,
    key_GNLD: Tensor,
    value_GNLD: Tensor,
    attention_mask: None,
    *,
    packing: Packing,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface for packed sequences; returns [G, L, N, D].

    Dropout is ignored: the ratio of two policies has to be that of two deterministic functions.
    """
    (query, answer_query), (key, answer_key), (value, answer_value) = (
        part.tensor_split([packing.prompt_tokens], dim=2)
        for part in (query_GNLD, key_GNLD, value_GNLD)
    )
    mixed = scaled_dot_product_attention(
        query,
        key,
        value,
        is_causal=True,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    if packing.answer_tokens == 0:
        return mixed.transpose(1, 2), None
    answer_mixed = attend_to_prompt(
        answer_query,
        (key, value),
        (answer_key, answer_value),
        num_answers=packing.num_answers,
        scale=scaling,
    )
    return torch.cat([mixed, answer_mixed], dim=2).transpose(1, 2), None


def _delta_net_forward(net: Any, hidden_states: Tensor, *, packing: Packing, **_: Any) -> Tensor:
    """`Qwen3_5GatedDeltaNet.forward` for packed sequences: prompt, fork the states, answers."""
    forward = functools.partial(type(net).forward, net)
    prompt_GPH, answers_NRH = packing.split(hidden_states, dim=1)
    state = DeltaNetState()
    mixed_GPH: Tensor = forward(prompt_GPH, cache_params=state)
    if packing.answer_tokens == 0:
        return mixed_GPH
    if packing.answer_tokens == 1:
        # transformers would take its kernel for single tokens, and fla's has no backward.
        answers_NRH = torch.nn.functional.pad(answers_NRH, (0, 0, 0, 1))
    mixed_NRH = forward(answers_NRH, cache_params=state.forked(packing))
    mixed_NRH = mixed_NRH[:, : packing.answer_tokens]
    return packing.join(mixed_GPH, mixed_NRH, dim=1)


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

    def forked(self, packing: Packing) -> "DeltaNetState":
        """A copy for each answer, in the same graph."""
        assert self.conv_states is not None
        assert self.recurrent_states[0] is not None
        fork = DeltaNetState()
        fork.conv_states = packing.fork(self.conv_states)
        fork.recurrent_states = (packing.fork(self.recurrent_states[0]),)
        return fork
