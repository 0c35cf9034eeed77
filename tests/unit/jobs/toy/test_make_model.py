"""The start checkpoint: the script makes one that loads, the shipped one is as its recipe says."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from common.messages import TextPart
from common.model import torchvision_cpu
from common.rows import TrainerRow
from common.video.frames import load_frames, sample_clip
from jobs.toy import clips, language, make_model, vision
from jobs.toy.clips import Event
from jobs.toy.regimes import REGIMES, StartRecipe
from services.reward.scorers.formatting import has_format

REPO = Path(__file__).parents[4]
SHIPPED = REPO / "deploy" / "tiny-qwen3vl"
NUM_VALIDATION = clips.NUM_CLIPS["validation"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def clips_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    clips.write_split(folder, "validation")
    return folder


def load(folder: Path) -> tuple[Any, Any, dict[str, set[str]]]:
    torchvision_cpu.install()
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, loading = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    return AutoProcessor.from_pretrained(folder), model.eval(), loading


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    processor, model, _ = load(SHIPPED)
    return processor, model


def generated(processor: Any, model: Any, path: Path, *, query: str) -> str:
    """The greedy answer by transformers' own generate, special tokens kept."""
    inputs = language.prompt_inputs(processor, path, query=query)
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    text: str = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :])
    return text


def video_frames(path: Path) -> np.ndarray[Any, Any]:
    return load_frames(sample_clip(path, sampling=clips.SAMPLING))


# --- the script ---------------------------------------------------------------------------------


def test_the_script_makes_a_checkpoint_that_transformers_loads(tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    sizes = (
        "--warm-clips 4 --validation-clips 2 --vision-steps 2 --first-evaluation 2 --start-miou 0"
    )
    app = typer.Typer()
    app.command()(make_model.main)
    words = ["--out", str(out), "--clips", str(tmp_path / "clips"), *sizes.split()]
    ran = CliRunner().invoke(app, words, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert "start rule was met at language step 2" in ran.output

    processor, model, loading = load(out)
    assert not any(loading.values())
    assert type(processor).__name__ == "Qwen3VLProcessor"
    assert type(model).__name__ == "Qwen3VLForConditionalGeneration"
    inputs = language.prompt_inputs(
        processor, tmp_path / "clips" / "warm" / "00000.mp4", query="the red circle is visible"
    )
    assert torch.isfinite(model(**inputs).logits).all()
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["recipe"]["warm_clips"] == 4
    assert [row["step"] for row in recipe["history"]] == [2]


def test_a_regime_s_start_is_the_shipped_one_warmed_up_on_its_clips(tmp_path: Path) -> None:
    """The tower stays, the language model learns; what is not complete does not appear."""
    several = replace(REGIMES["several"], start=StartRecipe(2, 2, start_miou=0.0))
    out, told = tmp_path / "start", list[str]()
    make = make_model.make_start
    made = make(out, regime=several, clips_folder=tmp_path / "clips", report=told.append)
    assert made.language_steps == make_model.EVALUATE_EVERY
    processor, model, loading = load(out)
    assert not any(loading.values())
    before = load(SHIPPED)[1].state_dict()
    changed = {
        name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])
    }
    assert changed
    assert not any(name.startswith("model.visual") for name in changed)
    asked = language.chat_text(processor, query="x", options=several.options)
    assert "1.5 to 4.8, 9.0 to 12.5" in asked
    assert json.loads((out / "recipe.json").read_text())["recipe"]["vision_steps"] == 0
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_start_that_thinks_learns_both_and_is_measured_by_answers_after_a_thought(
    tmp_path: Path,
) -> None:
    hybrid = replace(REGIMES["hybrid"], start=StartRecipe(2, 2, start_miou=0.0, thinks=True))
    out, folder = tmp_path / "start", tmp_path / "clips"
    make_model.make_start(out, regime=hybrid, clips_folder=folder, report=lambda _: None)
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["recipe"]["thinks"] is True
    assert recipe["validation"]["miou"] == 0.0, "five updates teach no thoughts yet"


def test_a_true_answer_with_its_thought_is_what_the_format_reward_wants(
    shipped: tuple[Any, Any], clips_folder: Path
) -> None:
    processor, model = shipped
    reader = language.SharedPrefix(model, processor, clips_folder / "validation/00000.mp4")
    event = Event("red", "circle", 3.5, 12.0)
    ids = reader.answer_ids(event, "think")
    assert len(ids) <= language.MAX_ANSWER_TOKENS[1] + language.MAX_THOUGHT_TOKENS
    text = processor.tokenizer.decode(ids, skip_special_tokens=True)
    assert text == "<think> around 8 seconds </think><answer> 3.5 to 12.0 </answer>"
    assert has_format(text, mode="think", rule="strict", readable=True)
    line = (clips_folder / "validation/rows.jsonl").read_text().splitlines()[0]
    row = TrainerRow.parse(line).check(row_id="0", video_root=clips_folder)
    (message,) = row.messages("think")
    asked = processor.tokenizer.decode(
        reader.query_ids(clips.scene_events("validation", 0)[0], "think")
    )
    assert isinstance(message.content[1], TextPart)
    assert message.content[1].text in asked, "as the learner asks"


def test_a_recipe_that_never_reaches_the_start_says_how_far_it_came(
    clips_folder: Path, tmp_path: Path
) -> None:
    recipe = make_model.Recipe(
        warm_clips=2,
        validation_clips=2,
        vision_steps=1,
        first_evaluation=1,
        start_miou=1.0,
        max_language_steps=1,
    )
    with pytest.raises(RuntimeError, match=r"found validation mIoU \[.*\].*wanted 1\.0"):
        make_model.make(tmp_path, clips_folder=clips_folder, recipe=recipe, report=str)
    assert not (tmp_path / "model.safetensors").exists()


# --- tokenizer and prompt -----------------------------------------------------------------------


def test_times_are_read_digit_by_digit(shipped: tuple[Any, Any]) -> None:
    tokenizer = shipped[0].tokenizer
    assert tokenizer.tokenize("<13.5 seconds>") == ["<", "1", "3", ".", "5", "Ġseconds", ">"]
    answer = Event("red", "circle", 3.5, 12.0).answer
    pieces = tokenizer.tokenize(answer)
    assert [piece for piece in pieces if piece.isdigit()] == ["3", "5", "1", "2", "0"]


@pytest.mark.parametrize(
    "text",
    [
        "<answer> 3.5 to 7.0 </answer>",
        "<think> it starts after the fade </think><answer> 0.0 to 16.0 </answer>",
        "naïve 測 🙂\n\n  two  spaces, tab\t.",
    ],
)
def test_any_text_comes_back_and_tags_are_not_special(shipped: tuple[Any, Any], text: str) -> None:
    tokenizer = shipped[0].tokenizer
    ids = tokenizer(text + "<|im_end|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert ids[-1] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_time_stands_before_every_temporal_patch(
    shipped: tuple[Any, Any], clips_folder: Path
) -> None:
    processor, _ = shipped
    path = clips_folder / clips.clip_path("validation", 0)
    inputs = language.prompt_inputs(processor, path, query="the red circle is visible")
    prompt = processor.tokenizer.decode(inputs["input_ids"][0])
    ref = sample_clip(path, sampling=clips.SAMPLING)
    times = np.array(ref.frame_indices).reshape(-1, 2).mean(1) / ref.source_fps
    frame = f"<|vision_start|>{'<|video_pad|>' * 4}<|vision_end|>"
    assert "".join(f"<{time:.1f} seconds>{frame}" for time in times) in prompt
    assert inputs["video_grid_thw"].tolist() == [[8, 4, 4]]
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.count("<|im_start|>") == 2, "nothing is added to the row's instruction"


# --- the stages ---------------------------------------------------------------------------------


def test_permuting_patches_is_permuting_the_channels_of_the_frames(
    shipped: tuple[Any, Any], clips_folder: Path
) -> None:
    processor, model = shipped
    data = vision.load_clips(
        clips_folder, "validation", num_clips=2, video_processor=processor.video_processor
    )
    order = (2, 0, 1)
    frames = [
        video_frames(clips_folder / clips.clip_path("validation", i))[..., list(order)]
        for i in range(2)
    ]
    patches = processor.video_processor(
        frames, do_sample_frames=False, do_resize=False, return_tensors="pt"
    )["pixel_values_videos"]
    recolored = replace(data, patches_NPD=patches.reshape(data.patches_NPD.shape))
    torch.testing.assert_close(
        vision.features(model.model.visual, data, permutation=order),
        vision.features(model.model.visual, recolored, permutation=(0, 1, 2)),
    )


def test_recoloring_names_the_colour_the_channels_make() -> None:
    assert vision.recolored("red", (1, 0, 2)) == "green"
    assert vision.recolored("yellow", (0, 2, 1)) == "magenta"
    for order in vision.PERMUTATIONS:
        names = {vision.recolored(name, order) for name in clips.COLORS}
        assert names == set(clips.COLORS)


def test_labels_follow_the_frames_true_times(shipped: tuple[Any, Any], clips_folder: Path) -> None:
    data = vision.load_clips(
        clips_folder, "validation", num_clips=4, video_processor=shipped[0].video_processor
    )
    ref = sample_clip(clips_folder / "validation/00000.mp4", sampling=clips.SAMPLING)
    for event in data.events[0]:
        seen = data.visible_NFC[0, :, list(clips.COLORS).index(event.color)]
        times = [index / ref.source_fps for index in ref.frame_indices]
        assert seen.tolist() == [float(event.start_s <= t < event.end_s) for t in times]
    assert data.visible_NFC.sum(-1).max() <= clips.SHAPES_PER_CLIP


def test_best_constant_is_found_on_a_case_worked_by_hand() -> None:
    events = ((Event("red", "circle", 2.0, 6.0), Event("blue", "square", 2.0, 6.0)),)
    assert language.best_constant(events) == ((2.0, 6.0), 1.0)
    one_wider = ((events[0][0], replace(events[0][1], end_s=10.0)),)
    span, miou = language.best_constant(one_wider)
    assert span[0] == 2.0
    assert miou == pytest.approx(0.75)  # (1 + 1/2) / 2 at either end


# --- the shipped checkpoint ---------------------------------------------------------------------


def test_the_shipped_checkpoint_is_small_float32_and_has_no_auxiliary_heads() -> None:
    from safetensors import safe_open

    assert (SHIPPED / "model.safetensors").stat().st_size < 4_000_000
    with safe_open(SHIPPED / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"F32"}
    assert all(name.startswith("model.") for name in names), "lm_head is tied, heads are gone"
    _, _, loading = load(SHIPPED)
    assert not any(loading.values())


def test_the_shipped_checkpoint_answers_a_fresh_clip_in_the_asked_format(
    shipped: tuple[Any, Any], clips_folder: Path
) -> None:
    processor, model = shipped
    answers = [
        generated(
            processor, model, clips_folder / clips.clip_path("validation", i), query=event.query
        )
        for i in range(6)
        for event in clips.scene_events("validation", i)
    ]
    asked = re.compile(r"<answer> \d+\.\d to \d+\.\d </answer><\|im_end\|>")
    assert np.mean([asked.fullmatch(answer) is not None for answer in answers]) >= 0.9, answers


def test_the_recipe_records_what_a_recomputation_finds(
    shipped: tuple[Any, Any], clips_folder: Path
) -> None:
    processor, model = shipped
    data = vision.load_clips(
        clips_folder,
        "validation",
        num_clips=NUM_VALIDATION,
        video_processor=processor.video_processor,
    )
    features = vision.features(model.model.visual, data, permutation=vision.PERMUTATIONS[0])
    reader = language.SharedPrefix(
        model, processor, clips_folder / clips.clip_path("validation", 0)
    )
    found = language.evaluate(reader, features, data.events)
    recipe = json.loads((SHIPPED / "recipe.json").read_text())
    recorded = recipe["validation"]
    # another CPU may round a few greedy choices differently
    assert found.miou == pytest.approx(recorded["miou"], abs=0.02)
    assert found.distractor_iou == pytest.approx(recorded["distractor_iou"], abs=0.02)
    assert found.answers_differ == pytest.approx(recorded["answers_differ"], abs=0.05)

    assert recipe["recipe"]["start_miou"] <= recorded["miou"] < 0.45
    assert all(row["miou"] < recipe["recipe"]["start_miou"] for row in recipe["history"][:-1])
    assert recorded["best_constant_miou"] == pytest.approx(
        language.best_constant(data.events)[1], abs=1e-4
    )

    for i in range(3):
        path = clips_folder / clips.clip_path("validation", i)
        plain = [generated(processor, model, path, query=e.query) for e in data.events[i]]
        shared = [f"{answer}<|im_end|>" for answer in found.answers[i]]
        assert plain == shared, "the shared prefix answers as transformers' generate does"
