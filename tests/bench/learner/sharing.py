"""What prompt-once-per-group saves beside the naive batch, as share of what its tokens promise.

Forward and backward of one group on CPU, tiny random checkpoints, visual features cached on both
sides. Naive is the untouched transformers model on the batch of whole sequences. Both ways run in
turn; memory is what a pass adds to this process's resident pages at its peak.

Shapes: S answers, P prompt tokens, R answer tokens.
"""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from common.messages import ClipRef
from services.learner.batching.batch import MicroBatch, collate
from services.learner.model.policy import Policy, load_policy
from services.learner.model.positions import prompt_positions
from tests.bench.spread import Spread
from tests.fixtures.learner.groups import (
    clip_ref,
    expanded_prompt,
    limits,
    scored_group,
    write_clip,
)
from tests.fixtures.learner.tiny_models import Architecture, write_tiny_model


@dataclass(frozen=True)
class Sharing:
    """One architecture."""

    architecture: str
    ideal_speedup: float
    """By tokens: G (P + R) / (P + G R)."""
    speedup: Spread
    """Naive over shared, pair by pair."""
    shared_s: float
    peak_mib: float
    naive_peak_mib: float
    max_logprob_gap_nats: float
    relative_gradient_error: float

    @property
    def share_of_ideal(self) -> Spread:
        """Of the token ratio."""
        pace = self.speedup
        parts = (pace.median, pace.lowest, pace.highest)
        return Spread(*(part / self.ideal_speedup for part in parts))


@dataclass(frozen=True)
class Pass:
    """One forward and backward."""

    logprobs_SR: Tensor
    gradient: Tensor
    seconds: float


def measure(
    architecture: Architecture,
    *,
    folder: Path,
    prompt_tokens: int,
    answer_tokens: int,
    group_size: int,
    repeats: int,
) -> Sharing:
    """Both ways in turn after one of each, and how far their results are apart."""
    from transformers import AutoModelForImageTextToText

    model = write_tiny_model(folder / architecture, architecture)
    clip = clip_ref(write_clip(folder / f"{architecture}.mp4", seed=0), architecture=architecture)
    policy = load_policy(model)
    naive = AutoModelForImageTextToText.from_pretrained(
        model, dtype=torch.float32, attn_implementation="sdpa"
    )
    naive.model.visual.requires_grad_(requires_grad=False)
    batch = _batch(policy, model, clip, prompt_tokens, answer_tokens, group_size)
    inputs = _naive_inputs(policy, batch)

    def share() -> Tensor:
        return policy(batch).logprobs_GSR[0]

    def repeat() -> Tensor:
        return _naive_logprobs(naive, inputs, batch.answer_ids_GSR[0])

    shared_mib, naive_mib = peak_mib(policy.model, share), peak_mib(naive, repeat)
    pairs = [(one_pass(policy.model, share), one_pass(naive, repeat)) for _ in range(repeats)]
    shared, alone = pairs[0]
    error = (shared.gradient - alone.gradient).norm() / alone.gradient.norm()
    ideal = group_size * (prompt_tokens + answer_tokens)
    return Sharing(
        architecture=architecture,
        ideal_speedup=ideal / (prompt_tokens + group_size * answer_tokens),
        speedup=Spread.of([alone.seconds / shared.seconds for shared, alone in pairs]),
        shared_s=statistics.median(shared.seconds for shared, _ in pairs),
        peak_mib=shared_mib,
        naive_peak_mib=naive_mib,
        max_logprob_gap_nats=float((shared.logprobs_SR - alone.logprobs_SR).abs().max()),
        relative_gradient_error=float(error),
    )


def _batch(
    policy: Policy, model: Path, clip: ClipRef, prompt_tokens: int, answer_tokens: int, size: int
) -> MicroBatch:
    """A group whose question, at one token a letter, fills the prompt up."""
    empty = expanded_prompt(model, clip, query="")["input_ids"].shape[1]
    group = scored_group(
        model,
        clip,
        video_token_id=policy.model.config.video_token_id,
        answer_lengths=[answer_tokens] * size,
        query="q" * (prompt_tokens - empty),
    )
    (batch,) = collate([group], [[1.0] * size], limits=limits()).micro_batches
    return batch


def _naive_inputs(policy: Policy, batch: MicroBatch) -> dict[str, Any]:
    """Whole sequences [S, P + R] with the same features and positions, for the naive forward."""
    inner = policy.model.model
    answers_SR = batch.answer_ids_GSR[0]
    size, answer_tokens = answers_SR.shape
    (features,) = policy.clips.features(batch.clips, device=policy.device)
    output = SimpleNamespace(
        pooler_output=[features.embeds_MH] * size,
        deepstack_features=[[level] * size for level in features.deepstack_DMH],
    )
    grids = [policy.clips.grid(clip) for clip in batch.clips]
    prompt_31P = prompt_positions(inner, batch.prompt_ids_GP, clips=batch.clips, grids=grids)
    answer_31R = (prompt_31P.max() + 1 + torch.arange(answer_tokens)).expand(3, 1, -1)
    prompts_SP = batch.prompt_ids_GP.expand(size, -1)
    return {
        "input_ids": torch.cat([prompts_SP, answers_SR], dim=1),
        "position_ids": torch.cat([prompt_31P, answer_31R], dim=2).expand(-1, size, -1),
        "encoded": output,
    }


def _naive_logprobs(model: Any, inputs: dict[str, Any], answers_SR: Tensor) -> Tensor:
    logits_SRV = model(
        input_ids=inputs["input_ids"],
        position_ids=inputs["position_ids"],
        mm_encoder_outputs={"video": inputs["encoded"]},
        use_cache=False,
        logits_to_keep=answers_SR.shape[1] + 1,
    ).logits[:, :-1]
    return logits_SRV.log_softmax(-1).gather(2, answers_SR[..., None])[..., 0]


def one_pass(model: Any, logprobs: Callable[[], Tensor]) -> Pass:
    """Forward and backward, with all gradients in one vector."""
    model.zero_grad()
    start = time.perf_counter()
    values_SR = logprobs()
    values_SR.sum().backward()
    seconds = time.perf_counter() - start
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return Pass(values_SR.detach(), torch.cat(gradients), seconds)


def peak_mib(model: Any, logprobs: Callable[[], Tensor]) -> float:
    """What a pass adds; apart from the timed ones, which get no fresh pages to clear."""
    one_pass(model, logprobs)
    before_mib = reset_peak()
    one_pass(model, logprobs)
    return resident_mib("VmHWM") - before_mib


def reset_peak() -> float:
    """Give freed memory back and forget the peak; returns MiB in use."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident_mib("VmRSS")


def resident_mib(name: str) -> float:
    """VmRSS or VmHWM of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status: found no {name}")
