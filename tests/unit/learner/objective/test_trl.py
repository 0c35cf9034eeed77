"""Loss and gradients are those of TRL's `GRPOTrainer` on identical completions.

TRL is the optional group `integrations` of pyproject.toml, and in no lock. It has no video path:
its `compute_loss` is called with the model behind a function that adds the clip. Everything else is
compared: prompt and answers in one padded batch there, the prompt once and answers packed here.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig

from common.config import Loss
from common.messages import ScoredGroup
from common.model import torchvision_cpu
from services.learner.batching.batch import MicroBatch, collate
from services.learner.model.policy import load_policy
from services.learner.objective.loss import denominator, policy_loss
from tests.fixtures.learner.groups import clip_ref, expanded_prompt, limits, scored_group
from tests.fixtures.learner.tiny_models import Architecture, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
TOLERANCE = 1e-5
LENGTHS = (5, 3, 7, 2)
ADVANTAGES = (1.5, -0.5, -1.25, 0.25)
QUERY = "When does it move?"
MAX_TOKENS = 9


class Objective(NamedTuple):
    """The same objective twice."""

    ours: dict[str, Any]
    theirs: dict[str, Any]
    """Of the trainer, or of its arguments."""


OBJECTIVES = {
    "DAPO": Objective({}, {"loss_type": "dapo"}),
    "token mean, dual clip": Objective({"dual_clip": 1.5}, {"loss_type": "bnpo", "delta": 1.5}),
    "Dr.GRPO": Objective(
        {"normalize": "constant", "constant_tokens": MAX_TOKENS}, {"loss_type": "dr_grpo"}
    ),
    "GSPO": Objective(
        {"level": "sequence"}, {"loss_type": "grpo", "importance_sampling_level": "sequence"}
    ),
    "CISPO": Objective(
        {"surrogate": "cispo", "clip_high": 0.1, "dual_clip": None},
        {"loss_type": "cispo", "epsilon_high": 1.1},
    ),
    "KL": Objective(
        {"kl_coef": 0.3}, {"loss_type": "dapo", "beta": 0.3, "use_bias_correction_kl": False}
    ),
    "KL, weighted": Objective(
        {"kl_coef": 0.3, "kl": "k3_weighted"},
        {"loss_type": "dapo", "beta": 0.3, "use_bias_correction_kl": True},
    ),
    "truncated importance weights": Objective(
        {"correction": "token_truncate", "correction_high": 1.1},
        {"loss_type": "dapo", "use_vllm": True, "vllm_importance_sampling_correction": True},
    ),
}


class Recorded(NamedTuple):
    """Answers to one prompt, [S, R], and what others think of their tokens."""

    group: ScoredGroup
    batch: MicroBatch
    old_SR: Tensor
    rollout_SR: Tensor
    reference_SR: Tensor


@pytest.fixture(scope="module")
def trl() -> None:
    torchvision_cpu.install()
    pytest.importorskip("trl", reason="TRL is not installed: group integrations")


@pytest.fixture(scope="module")
def model(trl: None, tiny_model: Callable[[Architecture], Path]) -> Path:
    return tiny_model("qwen3_vl")


@pytest.fixture(scope="module")
def recorded(model: Path, clip_paths: tuple[Path, Path]) -> Recorded:
    """Ratios around 1, so that clips act on some tokens."""
    group = scored_group(
        model,
        clip_ref(clip_paths[0], architecture="qwen3_vl"),
        video_token_id=AutoConfig.from_pretrained(model).video_token_id,
        answer_lengths=LENGTHS,
        query=QUERY,
        injected=False,
    )
    (batch,) = collate([group], [list(ADVANTAGES)], limits=limits()).micro_batches
    with torch.no_grad():
        logprobs_SR = load_policy(model)(batch).logprobs_GSR[0]
    generator = torch.Generator().manual_seed(0)

    def nearby(scale: float) -> Tensor:
        return logprobs_SR + scale * torch.randn(logprobs_SR.shape, generator=generator)

    old_SR = nearby(0.3)
    rollout_SR = old_SR + 0.2 * torch.randn(old_SR.shape, generator=generator)
    return Recorded(group, batch, old_SR, rollout_SR, nearby(0.5))


@pytest.fixture(scope="module")
def trainer(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    from transformers import AutoModelForImageTextToText
    from trl import GRPOConfig, GRPOTrainer

    theirs = AutoModelForImageTextToText.from_pretrained(
        model, dtype=torch.float32, attn_implementation="sdpa"
    )
    theirs.model.visual.requires_grad_(False)
    return GRPOTrainer(
        model=theirs,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            per_device_train_batch_size=len(LENGTHS),
            num_generations=len(LENGTHS),
            max_completion_length=MAX_TOKENS,
            epsilon=0.2,
            epsilon_high=0.28,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": "a"}] * len(LENGTHS)),
        processing_class=tiny_tokenizer(),
    )


def by_us(model: Path, recorded: Recorded, settings: Loss) -> tuple[float, dict[str, Tensor]]:
    policy, batch = load_policy(model), recorded.batch
    scores = policy(batch)
    loss, _ = policy_loss(
        scores.logprobs_GSR,
        old_logprobs_GSR=recorded.old_SR[None],
        rollout_logprobs_GSR=recorded.rollout_SR[None],
        advantages_GS=batch.advantages_GS,
        mask_GSR=batch.answer_mask_GSR,
        is_policy_GS=batch.is_policy_GS,
        entropy_GSR=scores.entropy_GSR,
        denominator=denominator(sum(LENGTHS), len(LENGTHS), settings=settings),
        settings=settings,
        reference_logprobs_GSR=recorded.reference_SR[None] if settings.kl_coef else None,
    )
    loss.backward()
    return loss.item(), gradients(policy.model)


def by_trl(
    trainer: Any, model: Path, recorded: Recorded, settings: Loss
) -> tuple[float, dict[str, Tensor]]:
    prompt = expanded_prompt(model, recorded.group.clip, query=QUERY)
    count = len(LENGTHS)

    def with_clip(**inputs: Any) -> Any:
        kinds_SP = prompt["mm_token_type_ids"].expand(count, -1)
        kinds_SL = torch.zeros_like(inputs["input_ids"])
        kinds_SL[:, : kinds_SP.shape[1]] = kinds_SP
        return trainer.model(
            **inputs,
            mm_token_type_ids=kinds_SL,
            pixel_values_videos=prompt["pixel_values_videos"].repeat(count, 1),
            video_grid_thw=prompt["video_grid_thw"].repeat(count, 1),
        )

    answers = [torch.tensor(list(sample.token_ids)) for sample in recorded.group.samples]
    mask_SR = recorded.batch.answer_mask_GSR[0].long()
    weight_SR = (recorded.old_SR - recorded.rollout_SR).exp().clamp(max=settings.correction_high)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.zero_grad()
    loss = trainer.compute_loss(
        with_clip,
        {
            "prompt_ids": prompt["input_ids"].repeat(count, 1),
            "prompt_mask": torch.ones_like(prompt["input_ids"]).repeat(count, 1),
            "completion_ids": pad_sequence(answers, batch_first=True),
            "completion_mask": mask_SR,
            "advantages": torch.tensor(ADVANTAGES),
            "old_per_token_logps": recorded.old_SR,
            "ref_per_token_logps": recorded.reference_SR,
            "importance_sampling_ratio": weight_SR,
            "num_items_in_batch": mask_SR.sum(),
        },
    )
    loss.backward()
    return loss.item(), gradients(trainer.model)


def gradients(model: Any) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def turn(trainer: Any, knobs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its knobs are fields of the trainer, of its arguments, or of both."""
    for name, value in knobs.items():
        places = [place for place in (trainer, trainer.args) if hasattr(place, name)]
        assert places, name
        for place in places:
            monkeypatch.setattr(place, name, value)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_all_gradients_equal_trl_s(
    name: str, model: Path, recorded: Recorded, trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = OBJECTIVES[name]
    settings = Loss(**{"correction": "off", "dual_clip": None} | objective.ours)
    turn(trainer, objective.theirs, monkeypatch)
    loss, found = by_us(model, recorded, settings)
    trl_loss, wanted = by_trl(trainer, model, recorded, settings)
    assert loss == pytest.approx(trl_loss, rel=TOLERANCE)
    assert found.keys() == wanted.keys()
    difference = sum((found[key] - wanted[key]).square().sum() for key in wanted)
    norm = sum(gradient.square().sum() for gradient in wanted.values())
    assert (difference / norm) ** 0.5 < TOLERANCE


def test_the_recorded_ratios_are_clipped_on_either_side(recorded: Recorded, model: Path) -> None:
    """Or the comparison above would not see the clips."""
    with torch.no_grad():
        logprobs_SR = load_policy(model)(recorded.batch).logprobs_GSR[0]
    ratios = (logprobs_SR - recorded.old_SR).exp()[recorded.batch.answer_mask_GSR[0]]
    assert (ratios > 1.5).any()
    assert (ratios < 0.8).any()
    assert ((ratios > 0.9) & (ratios < 1.1)).any()
