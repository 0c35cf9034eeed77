"""A packed group scores and learns exactly as the same answers one by one through transformers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from common.messages import ClipRef, ScoredGroup
from common.model import torchvision_cpu
from services.learner.batching.batch import MicroBatch, collate
from services.learner.model.policy import load_policy
from services.learner.model.positions import prompt_positions
from services.learner.model.prefix import install
from tests.fixtures.learner.groups import clip_ref, expanded_prompt, limits, scored_group
from tests.fixtures.learner.tiny_models import ARCHITECTURES, Architecture

TOLERANCE = 1e-5
ANSWER_LENGTHS = ((5, 2, 4), (1, 6, 3))
QUERIES = ("When?", "Where")


@dataclass
class Case:
    """A checkpoint and two groups of equal prompt length on different clips."""

    model: Path
    architecture: Architecture
    clips: list[ClipRef]
    groups: list[ScoredGroup]

    @property
    def micro_batch(self) -> MicroBatch:
        advantages = [[1.0] * len(group.samples) for group in self.groups]
        (micro_batch,) = collate(self.groups, advantages, limits=limits()).micro_batches
        return micro_batch


@pytest.fixture(params=ARCHITECTURES)
def case(
    request: pytest.FixtureRequest,
    tiny_model: Callable[[Architecture], Path],
    clip_paths: tuple[Path, Path],
) -> Case:
    architecture: Architecture = request.param
    model = tiny_model(architecture)
    video_token_id = config_of(model).video_token_id
    clips = [clip_ref(path, architecture=architecture) for path in clip_paths]
    groups = [
        scored_group(
            model,
            clips[index],
            video_token_id=video_token_id,
            answer_lengths=ANSWER_LENGTHS[index],
            query=QUERIES[index],
            seed=index,
        )
        for index in range(2)
    ]
    return Case(model, architecture, clips, groups)


def config_of(model: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model)


def naive_logprobs(model: Any, case: Case, group: int, row: int) -> Tensor:
    """[R] log-probabilities of one answer by the untouched model on the whole sequence."""
    inputs = expanded_prompt(case.model, case.clips[group], query=QUERIES[group])
    prompt_1P = inputs["input_ids"]
    answer_1R = torch.tensor([case.groups[group].samples[row].token_ids])
    num_answer = answer_1R.shape[1]
    extra: dict[str, Any] = {
        "mm_token_type_ids": torch.cat(
            [inputs["mm_token_type_ids"], torch.zeros_like(answer_1R)], dim=1
        )
    }
    if case.architecture == "qwen2_5_vl":  # transformers' own positions are not those of vLLM
        grid = tuple(inputs["video_grid_thw"][0].tolist())
        prompt_31P = prompt_positions(
            model.model, prompt_1P, clips=[case.clips[group]], grids=[grid]
        )
        answer_31R = (prompt_31P.max() + 1 + torch.arange(num_answer)).expand(3, 1, -1)
        extra = {"position_ids": torch.cat([prompt_31P, answer_31R], dim=2)}
    logits = model(
        input_ids=torch.cat([prompt_1P, answer_1R], dim=1),
        pixel_values_videos=inputs["pixel_values_videos"],
        video_grid_thw=inputs["video_grid_thw"],
        use_cache=False,
        **extra,
    ).logits
    before_RV = logits[0, -num_answer - 1 : -1].log_softmax(-1)
    return before_RV.gather(1, answer_1R[0][:, None])[:, 0]


def gradients(model: Any) -> dict[str, Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def relative_error(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    difference = sum((found[name] - wanted[name]).square().sum() for name in wanted)
    norm = sum(wanted[name].square().sum() for name in wanted)
    return float((difference / norm).sqrt())


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_loss_and_all_gradients_equal_the_naive_batch(case: Case, *, freeze_vision: bool) -> None:
    torchvision_cpu.install()
    from transformers import AutoModelForImageTextToText

    policy = load_policy(case.model, freeze_vision=freeze_vision)
    weights = torch.linspace(-1.0, 2.0, 6)
    scores = policy(case.micro_batch)
    loss = (scores.logprobs_GSR * weights).sum()
    loss.backward()

    naive = AutoModelForImageTextToText.from_pretrained(
        case.model, dtype=torch.float32, attn_implementation="sdpa"
    )
    naive.model.visual.requires_grad_(not freeze_vision)
    naive_loss = torch.zeros(())
    for group, lengths in enumerate(ANSWER_LENGTHS):
        for row, length in enumerate(lengths):
            logprobs_R = naive_logprobs(naive, case, group, row)
            found_R = scores.logprobs_GSR[group, row]
            assert found_R[:length].tolist() == pytest.approx(logprobs_R.tolist(), abs=1e-4)
            assert not found_R[length:].any()
            naive_loss = naive_loss + (logprobs_R * weights[:length]).sum()
    naive_loss.backward()

    assert loss.item() == pytest.approx(naive_loss.item(), rel=TOLERANCE)
    assert relative_error(gradients(policy.model), gradients(naive)) < TOLERANCE


def test_gradient_checkpointing_changes_nothing(case: Case) -> None:
    plain = load_policy(case.model)
    checkpointed = load_policy(case.model, recomputed=1.0)
    calls = []
    checkpointed.decoder_layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    losses = []
    for policy in (plain, checkpointed):
        loss = policy(case.micro_batch).logprobs_GSR.sum()
        loss.backward()
        losses.append(loss.item())
    assert len(calls) == 2, "the layer was not computed again in backward"
    assert losses[0] == losses[1]
    assert relative_error(gradients(checkpointed.model), gradients(plain.model)) == 0.0


def test_every_second_layer_is_computed_again(case: Case) -> None:
    policy = load_policy(case.model, recomputed=0.5)
    calls: list[int] = []
    for index, layer in enumerate(policy.decoder_layers):
        layer.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    policy(case.micro_batch).logprobs_GSR.sum().backward()
    layers = range(len(policy.decoder_layers))
    assert [calls.count(index) for index in layers] == [2 - index % 2 for index in layers]


def test_answers_of_one_token_need_no_answer_pass(case: Case) -> None:
    policy = load_policy(case.model)
    whole = case.micro_batch
    first = replace(
        whole,
        answer_ids_GSR=whole.answer_ids_GSR[..., :1],
        answer_mask_GSR=whole.answer_mask_GSR[..., :1],
        rollout_logprobs_GSR=whole.rollout_logprobs_GSR[..., :1],
        answer_tokens=((1, 1, 1), (1, 1, 1)),
    )
    found_GSR = policy(first).logprobs_GSR
    assert found_GSR.shape == (2, 3, 1)
    assert torch.allclose(found_GSR, policy(whole).logprobs_GSR[..., :1], atol=1e-4)


def test_layers_that_look_through_a_window_are_refused() -> None:
    text = SimpleNamespace(layer_types=["full_attention", "sliding_attention"])
    model = SimpleNamespace(config=SimpleNamespace(text_config=text))
    with pytest.raises(ValueError, match="found text layers of type"):
        install(model)


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> tuple[Tensor, Tensor | None]:
    """`chunk_gated_delta_rule` as flash-linear-attention documents it, a token at a time."""
    assert use_qk_l2norm_in_kernel
    assert g.dtype == torch.float32
    q, k, v, beta = (part.transpose(1, 2).double() for part in (q, k, v, beta))
    q, k = ((x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)) for x in (q, k))
    decay = g.transpose(1, 2).double().exp()
    state = q.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
    if initial_state is not None:
        assert initial_state.shape == state.shape
        assert initial_state.dtype == torch.float32
        state = initial_state.double()
    mixed = []
    for t in range(q.shape[2]):
        state = state * decay[:, :, t, None, None]
        written = beta[:, :, t, None] * (v[:, :, t] - (k[:, :, t, :, None] * state).sum(-2))
        state = state + k[:, :, t, :, None] * written[..., None, :]
        mixed.append((q[:, :, t, :, None] * state).sum(-2) * (scale or q.shape[-1] ** -0.5))
    final = state.float() if output_final_state else None
    return torch.stack(mixed, dim=1).float(), final


@pytest.mark.parametrize("answer_lengths", [(5, 2, 4), (2, 1, 2)])
def test_what_forks_a_delta_net_is_what_flash_linear_attention_documents(
    tiny_model: Callable[[Architecture], Path],
    clip_paths: tuple[Path, Path],
    answer_lengths: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its states' shapes, order and dtype, and a gradient through the fork; never its kernel for
    single tokens, which has no backward."""
    from transformers.models.qwen3_5 import modeling_qwen3_5

    model = tiny_model("qwen3_5")
    clip = clip_ref(clip_paths[0], architecture="qwen3_5")
    group = scored_group(
        model,
        clip,
        video_token_id=config_of(model).video_token_id,
        answer_lengths=answer_lengths,
    )
    (batch,) = collate([group], [[1.0] * 3], limits=limits()).micro_batches
    found = []
    for kernel in (modeling_qwen3_5.torch_chunk_gated_delta_rule, recurrence):
        monkeypatch.setattr(modeling_qwen3_5, "torch_chunk_gated_delta_rule", kernel)
        monkeypatch.setattr(modeling_qwen3_5, "torch_recurrent_gated_delta_rule", None)
        policy = load_policy(model)
        logprobs = policy(batch).logprobs_GSR
        (logprobs * torch.linspace(-1.0, 2.0, logprobs.numel()).view_as(logprobs)).sum().backward()
        found.append({"logprobs": logprobs.detach(), **gradients(policy.model)})
    assert relative_error(found[1], found[0]) < TOLERANCE
