"""Make the demo's start checkpoint from nothing: `python -m jobs.toy.make_model --out FOLDER`.

A genuine `Qwen3VLForConditionalGeneration` of 0.95 M parameters that answers in the right format
and has only begun to mind which shape was asked for. Three stages: tokenizer and processor
(`jobs.toy.tokenizer`), vision tower (`jobs.toy.vision`), language model (`jobs.toy.language`).
The shipped one is `deploy/tiny-qwen3vl`; demo and tests load it like any Hugging Face checkpoint.

**Start rule**, fixed before any reinforcement-learning result was looked at: from step 100 of the
language warm-up on, every 5 steps, the greedy mIoU with the queried shape is measured on the
`validation` split (128 clips, 384 queries; `test` is never read here). The first checkpoint with
mIoU >= 0.40 is the start. `recipe.json` in the folder records the rule, the seed and what was
measured.

`--start NAME` makes the start of a regime (`jobs.toy.regimes`) from the shipped checkpoint instead:
its tower, tokenizer and language model, warmed up on that regime's clips by the same rule, but from
step 5 on and with the regime's own mIoU (`hybrid`: also on prompts that ask for a thought, and by
the mIoU of answers after one). They are made where they are first needed (`runs/starts`)
and not shipped: each is as large as the one that is.
"""

import functools
import importlib.metadata
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from common.answers.spans import Span
from common.messages import Mode
from common.model import torchvision_cpu
from jobs.local import terminal
from jobs.toy import clips
from jobs.toy.language import (
    SCHEDULE_STEPS,
    Evaluation,
    Events,
    SharedPrefix,
    WarmUp,
    best_constant,
    evaluate,
)
from jobs.toy.regimes import REGIMES, Regime
from jobs.toy.tokenizer import MERGE_SIZE, PATCH_PX, TEMPORAL_PATCH, write_processor
from jobs.toy.vision import PERMUTATIONS, ClipTensors, Report, features, load_clips, pretrain

SHIPPED = Path(__file__).resolve().parents[2] / "deploy/tiny-qwen3vl"
EVALUATE_EVERY = 5
VERSIONED = ("torch", "transformers", "tokenizers", "numpy", "av", "decord")
"""Packages whose version can change the weights."""


@dataclass(frozen=True)
class Recipe:
    """How the checkpoint is made; the defaults are those of the shipped one."""

    seed: int = 0
    warm_clips: int = clips.NUM_CLIPS["warm"]
    validation_clips: int = clips.NUM_CLIPS["validation"]
    vision_steps: int = 600
    first_evaluation: int = 100
    """Language step of the first evaluation."""
    start_miou: float = 0.40
    """The first evaluation that reaches this validation mIoU gives the checkpoint."""
    max_language_steps: int = SCHEDULE_STEPS
    thinks: bool = False
    """Whether every other update asks for a thought, and evaluations do."""

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Of the language updates, in turn; evaluations ask in the last."""
        return ("answer", "think") if self.thinks else ("answer",)


@dataclass(frozen=True)
class Outcome:
    """What the last evaluation measured and all that came before."""

    language_steps: int
    validation: Evaluation
    history: list[dict[str, float]]


def make(out: Path, *, clips_folder: Path, recipe: Recipe, report: Report) -> Outcome:
    """Write a checkpoint folder.

    Args:
        out: folder to write, created if need be.
        clips_folder: where `warm` and `validation` clips are or will be (`clips.write_split`).
        recipe: sizes, seed and start rule.
        report: takes one line of progress.

    Raises:
        RuntimeError: the start rule was not met within `recipe.max_language_steps`.
    """
    torchvision_cpu.install()
    from transformers import AutoProcessor

    out.mkdir(parents=True, exist_ok=True)
    tokenizer = write_processor(out)
    processor = AutoProcessor.from_pretrained(out)
    model = build_model(tokenizer, seed=recipe.seed)
    load = functools.partial(load_clips, clips_folder, video_processor=processor.video_processor)
    warm = load("warm", num_clips=recipe.warm_clips)
    validation = load("validation", num_clips=recipe.validation_clips)
    report(f"decoded {recipe.warm_clips} warm-up and {recipe.validation_clips} validation clips")
    pretrain(model.model.visual, warm, steps=recipe.vision_steps, seed=recipe.seed, report=report)
    reader = SharedPrefix(model, processor, clips_folder / clips.clip_path("warm", 0))
    return _finish(reader, warm, validation, recipe=recipe, out=out, report=report)


def make_start(out: Path, *, regime: Regime, clips_folder: Path, report: Report) -> Outcome:
    """Write the start checkpoint of a regime, made from the shipped one.

    Args:
        out: folder to write; it appears when it is complete.
        regime: one with a start recipe.
        clips_folder: for its warm-up and validation clips.
        report: takes one line of progress.

    Raises:
        RuntimeError: as `make`.
    """
    torchvision_cpu.install()
    from transformers import AutoModelForImageTextToText, AutoProcessor

    assert regime.start is not None
    recipe = Recipe(
        warm_clips=regime.start.warm_clips,
        validation_clips=regime.start.validation_clips,
        vision_steps=0,
        first_evaluation=EVALUATE_EVERY,
        start_miou=regime.start.start_miou,
        thinks=regime.start.thinks,
    )
    processor = AutoProcessor.from_pretrained(SHIPPED)
    model = AutoModelForImageTextToText.from_pretrained(SHIPPED)
    load = functools.partial(
        load_clips,
        clips_folder,
        video_processor=processor.video_processor,
        options=regime.options,
    )
    warm = load("warm", num_clips=recipe.warm_clips)
    validation = load("validation", num_clips=recipe.validation_clips)
    report(f"decoded {recipe.warm_clips} warm-up and {recipe.validation_clips} validation clips")
    example = clips_folder / clips.clip_path("warm", 0)
    reader = SharedPrefix(model, processor, example, options=regime.options)
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    shutil.copytree(SHIPPED, partial)
    outcome = _finish(reader, warm, validation, recipe=recipe, out=partial, report=report)
    partial.rename(out)
    return outcome


def _finish(
    reader: SharedPrefix,
    warm: ClipTensors,
    validation: ClipTensors,
    *,
    recipe: Recipe,
    out: Path,
    report: Report,
) -> Outcome:
    """Freeze the tower, warm the language model up until the start rule is met, and save."""
    tower = reader.model.model.visual
    tower.requires_grad_(False)
    train_features = [features(tower, warm, permutation=order) for order in PERMUTATIONS]
    report("cached the features of the frozen tower")
    outcome = _warm_up(
        WarmUp(reader, warm, train_features, seed=recipe.seed, modes=recipe.modes),
        held_out=features(tower, validation, permutation=PERMUTATIONS[0]),
        events=validation.events,
        recipe=recipe,
        report=report,
    )
    reader.model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # safetensors makes it readable by the owner alone
    constant = best_constant(validation.events, duration_s=reader.options.duration_s)
    record = json.dumps(_record(recipe, outcome, constant), indent=2)
    (out / "recipe.json").write_text(record + "\n", encoding="utf-8")
    return outcome


def build_model(tokenizer: Any, *, seed: int) -> Any:
    """A randomly initialised Qwen3-VL, float32: 4 language layers of 128, 2 vision layers of 64."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    torch.manual_seed(seed)
    token = tokenizer.convert_tokens_to_ids
    model = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            text_config=_text_config(vocab_size=-(-len(tokenizer) // 64) * 64)
            | {"eos_token_id": token("<|im_end|>"), "pad_token_id": None, "bos_token_id": None},
            vision_config=_vision_config(),
            image_token_id=token("<|image_pad|>"),
            video_token_id=token("<|video_pad|>"),
            vision_start_token_id=token("<|vision_start|>"),
            vision_end_token_id=token("<|vision_end|>"),
            tie_word_embeddings=True,
            dtype="float32",
        )
    )
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.pad_token_id = token("<|endoftext|>")
    return model


def _text_config(*, vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "initializer_range": 0.05,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [6, 5, 5],  # half of head_dim
            "mrope_interleaved": True,
        },
    }


def _vision_config() -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "patch_size": PATCH_PX,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": TEMPORAL_PATCH,
        "out_hidden_size": 128,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
        "initializer_range": 0.05,
    }


def _warm_up(
    warm_up: WarmUp, *, held_out: Tensor, events: Events, recipe: Recipe, report: Report
) -> Outcome:
    """Train until the start rule is met."""
    history: list[dict[str, float]] = []
    for step in range(1, recipe.max_language_steps + 1):
        loss = warm_up.step()
        if step < recipe.first_evaluation or (step - recipe.first_evaluation) % EVALUATE_EVERY:
            continue
        measured = evaluate(warm_up.reader, held_out, events, mode=recipe.modes[-1])
        history.append({"step": step} | _summary(measured))
        report(f"language step {step}: loss {loss:.3f}, validation {_summary(measured)}")
        if measured.miou >= recipe.start_miou:
            return Outcome(step, measured, history)
    raise RuntimeError(
        f"found validation mIoU {[row['miou'] for row in history]} in {recipe.max_language_steps} "
        f"language steps, wanted {recipe.start_miou}: change --seed or --start-miou"
    )


def _summary(measured: Evaluation) -> dict[str, float]:
    return {
        "miou": round(measured.miou, 4),
        "distractor_iou": round(measured.distractor_iou, 4),
        "answers_differ": round(measured.answers_differ, 4),
    }


def _record(recipe: Recipe, outcome: Outcome, constant: tuple[Span, float]) -> dict[str, Any]:
    span, miou = constant
    return {
        "rule": (
            f"first of the evaluations at language steps {recipe.first_evaluation}, "
            f"{recipe.first_evaluation + EVALUATE_EVERY}, ... whose greedy mIoU on the validation "
            f"split reaches {recipe.start_miou}; fixed before any reinforcement-learning result, "
            "the test split is not read"
        ),
        "recipe": asdict(recipe),
        "language_steps": outcome.language_steps,
        "validation": _summary(outcome.validation)
        | {"best_constant_span_s": span, "best_constant_miou": round(miou, 4)},
        "history": outcome.history,
        "versions": {name: importlib.metadata.version(name) for name in VERSIONED},
    }


def main(
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write.")],
    start: Annotated[
        str | None, typer.Option(help="Make the start of this regime from the shipped checkpoint.")
    ] = None,
    clips_folder: Annotated[
        Path, typer.Option("--clips", help="Folder of the warm-up and validation clips.")
    ] = Path("runs/clips"),
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = Recipe.seed,
    warm_clips: Annotated[int, typer.Option(min=1)] = Recipe.warm_clips,
    validation_clips: Annotated[int, typer.Option(min=1)] = Recipe.validation_clips,
    vision_steps: Annotated[int, typer.Option(min=1)] = Recipe.vision_steps,
    first_evaluation: Annotated[int, typer.Option(min=1)] = Recipe.first_evaluation,
    start_miou: Annotated[float, typer.Option(min=0, max=1)] = Recipe.start_miou,
) -> None:
    """Make the demo's start checkpoint from nothing, on one core."""
    torch.set_num_threads(1)
    console = terminal.console()
    report = functools.partial(console.print, soft_wrap=True)
    if start is not None:
        regime = _with_a_start(start)
        outcome = make_start(out, regime=regime, clips_folder=clips_folder, report=report)
        report(f"{out}: the start rule was met at language step {outcome.language_steps}")
        return
    recipe = Recipe(
        seed=seed,
        warm_clips=warm_clips,
        validation_clips=validation_clips,
        vision_steps=vision_steps,
        first_evaluation=first_evaluation,
        start_miou=start_miou,
    )
    outcome = make(out, clips_folder=clips_folder, recipe=recipe, report=report)
    report(f"{out}: the start rule was met at language step {outcome.language_steps}")


def _with_a_start(name: str) -> Regime:
    makers = {known: regime for known, regime in REGIMES.items() if regime.start is not None}
    if name not in makers:
        raise typer.BadParameter(f"found {name!r}, wanted one of {', '.join(makers)}")
    return makers[name]


if __name__ == "__main__":
    typer.run(main)
