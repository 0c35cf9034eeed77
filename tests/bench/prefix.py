"""What prompt-once-per-group saves: `python -m tests.bench.prefix [--json FILE]` → table, JSON.

Forward and backward of one group on CPU, tiny random checkpoints, visual features cached on both
sides. Naive is the untouched transformers model on the batch of whole sequences.

Shapes: S answers, P prompt tokens, R answer tokens.
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from common.messages import ClipRef
from services.learner.batching.batch import MicroBatch, collate
from services.learner.model.policy import Policy, load_policy
from services.learner.model.positions import prompt_positions
from tests.fixtures.learner.groups import clip_ref, expanded_prompt, scored_group, write_clip
from tests.fixtures.learner.tiny_models import ARCHITECTURES, Architecture, write_tiny_model


@dataclass(frozen=True)
class Result:
    """One line of the table."""

    architecture: str
    prompt_tokens: int
    answer_tokens: int
    group_size: int
    naive_s: float
    shared_s: float
    speedup: float
    ideal_speedup: float
    """By tokens: G (P + R) / (P + G R)."""
    max_logprob_gap_nats: float
    relative_gradient_error: float


def measure(
    architecture: Architecture,
    *,
    folder: Path,
    prompt_tokens: int,
    answer_tokens: int,
    group_size: int,
    repeats: int,
) -> Result:
    """Best of `repeats` for both ways, and how far their results are apart."""
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
    shared_SR, shared_gradient, shared_s = _timed(
        policy.model, lambda: policy(batch).logprobs_GSR[0], repeats
    )
    naive_SR, naive_gradient, naive_s = _timed(
        naive, lambda: _naive_logprobs(naive, inputs, batch.answer_ids_GSR[0]), repeats
    )
    error = (shared_gradient - naive_gradient).norm() / naive_gradient.norm()
    ideal = group_size * (prompt_tokens + answer_tokens)
    ideal /= prompt_tokens + group_size * answer_tokens
    return Result(
        architecture=architecture,
        prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens,
        group_size=group_size,
        naive_s=naive_s,
        shared_s=shared_s,
        speedup=naive_s / shared_s,
        ideal_speedup=ideal,
        max_logprob_gap_nats=float((shared_SR - naive_SR).abs().max()),
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
    (batch,) = collate([group], [[1.0] * size], micro_batch_groups=1).micro_batches
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


def _timed(
    model: Any, logprobs: Callable[[], Tensor], repeats: int
) -> tuple[Tensor, Tensor, float]:
    """Log-probabilities, all gradients in one vector, and the best time of forward and backward."""
    times_s = []
    for _ in range(repeats):
        model.zero_grad()
        start = time.perf_counter()
        values_SR = logprobs()
        values_SR.sum().backward()
        times_s.append(time.perf_counter() - start)
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return values_SR.detach(), torch.cat(gradients), min(times_s)


def table_of(results: list[Result]) -> Table:
    """Results for the terminal."""
    table = Table(title="prompt once per group against the naive batch, forward + backward")
    headings = "model,prompt,answer,G,naive s,shared s,speed-up,by tokens,max gap,gradient error"
    for heading in headings.split(","):
        table.add_column(heading, justify="right")
    for result in results:
        table.add_row(
            result.architecture,
            *(str(n) for n in (result.prompt_tokens, result.answer_tokens, result.group_size)),
            *(f"{s:.3f}" for s in (result.naive_s, result.shared_s)),
            *(f"{ratio:.2f}x" for ratio in (result.speedup, result.ideal_speedup)),
            f"{result.max_logprob_gap_nats:.0e} nats",
            f"{result.relative_gradient_error:.0e}",
        )
    return table


def main(
    prompt_tokens: int = 1024,
    answer_tokens: int = 16,
    group_size: int = 8,
    repeats: int = 5,
    threads: int = 1,
    output: Annotated[Path | None, typer.Option("--json", help="Also write them here.")] = None,
) -> None:
    """Measure all architectures."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        results = [
            measure(
                architecture,
                folder=Path(folder),
                prompt_tokens=prompt_tokens,
                answer_tokens=answer_tokens,
                group_size=group_size,
                repeats=repeats,
            )
            for architecture in ARCHITECTURES
        ]
    Console(width=120).print(table_of(results))
    if output is not None:
        output.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
