"""Model folder and prompt: a file, a tensor, a template, a factor, a length taken away."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from common.config import Run
from common.model.architecture import architecture_of
from jobs.doctor import inputs, model, prompt
from jobs.doctor.finding import Finding
from jobs.doctor.inputs import Inputs
from jobs.doctor.machine import Gpu
from jobs.doctor.prompt import Prompt

Make = Callable[..., Run]


def files(run: Run) -> Finding:
    _, (finding,) = model.files(run)
    return finding


def test_a_whole_folder_is_ok(make_run: Make, own_model: Path) -> None:
    folder, (finding,) = model.files(make_run(f"shared.model={own_model}"))
    assert (folder, finding.level) == (own_model, "ok")


@pytest.mark.parametrize("name", ["chat_template.jinja", "config.json"])
def test_a_missing_file_is_named(make_run: Make, own_model: Path, name: str) -> None:
    (own_model / name).unlink()
    finding = files(make_run(f"shared.model={own_model}"))
    assert (finding.level, name in finding.found) == ("fail", True)


def test_a_folder_that_is_not_there_fails(make_run: Make, tmp_path: Path) -> None:
    finding = files(make_run(f"shared.model={tmp_path}/gone"))
    assert (finding.level, "shared.model" in finding.found) == ("fail", True)


def test_a_missing_tensor_is_named(own_model: Path) -> None:
    (finding,) = model.tensors(own_model, architecture=architecture_of(str(own_model)))
    assert (finding.level, "tied to the embedding" in finding.found) == ("ok", True)
    weights = own_model / "model.safetensors"
    kept = load_file(weights)
    gone = next(name for name in kept if name.endswith("q_proj.weight"))
    save_file({name: one for name, one in kept.items() if name != gone}, weights)
    (finding,) = model.tensors(own_model, architecture=architecture_of(str(own_model)))
    assert (finding.level, gone in finding.found) == ("fail", True)


def test_a_head_that_is_neither_stored_nor_tied_fails(own_model: Path) -> None:
    config = own_model / "config.json"
    written = json.loads(config.read_text())
    written["tie_word_embeddings"] = written["text_config"]["tie_word_embeddings"] = False
    config.write_text(json.dumps(written))
    (finding,) = model.tensors(own_model, architecture=architecture_of(str(own_model)))
    assert (finding.level, "lm_head.weight" in finding.found) == ("fail", True)


def test_clips_longer_than_prompts_are_warned_of(make_run: Make) -> None:
    architecture = architecture_of("deploy/tiny-qwen3vl")
    (found,) = model.fits(make_run(), architecture=architecture, gpus=[])
    assert (found.level, "shared.max_prompt_tokens" in found.found) == ("warn", True)
    roomy = make_run("shared.max_prompt_tokens=6000", "rollout.max_model_len=8000")
    (found,) = model.fits(roomy, architecture=architecture, gpus=[])
    assert found.level == "ok"


def test_a_small_card_is_warned_of(make_run: Make) -> None:
    run = make_run(
        *("learner.device=cuda", "rollout.device=cuda", "shared.dtype=bfloat16"),
        *("shared.max_prompt_tokens=6000", "rollout.max_model_len=8000"),
        f"rollout.kv_cache_bytes={10**11}",
    )
    architecture = architecture_of("Qwen/Qwen3-VL-4B-Instruct")
    small, large = (Gpu("card", int(size * 1e9), "550.1") for size in (24, 900))
    levels = {
        card.memory_bytes: {
            one.name: one.level for one in model.fits(run, architecture=architecture, gpus=[card])
        }
        for card in (small, large)
    }
    assert levels[small.memory_bytes]["card memory"] == "warn"
    assert levels[large.memory_bytes]["card memory"] == "ok"


# --- the prompt -----------------------------------------------------------------------------


@pytest.fixture
def given(make_run: Make) -> tuple[Run, Inputs]:
    run, given = make_run(), Inputs()
    list(inputs.rows(run, given))
    list(inputs.clips(run, given))
    return run, given


def rendered(run: Run, given: Inputs, folder: Path) -> Prompt:
    assert given.clip is not None
    assert given.frames is not None
    return prompt.rendered(folder, given.rows[0], clip=given.clip, frames=given.frames)


def judged(run: Run, given: Inputs, made: Prompt) -> dict[str, Finding]:
    assert given.clip is not None
    found = prompt.findings(made, clip=given.clip, shared=run.shared)
    return {finding.name: finding for finding in found}


def test_the_first_prompt_is_shown_as_the_model_sees_it(
    given: tuple[Run, Inputs], own_model: Path
) -> None:
    made = rendered(*given, own_model)
    found = judged(*given, made)
    assert {one.level for one in found.values()} == {"ok"}
    assert "<0.6 seconds><|vision_start|><|video_pad|>x2" in found["first prompt"].found
    assert "Event 0." in found["first prompt"].found
    assert made.num_visual_tokens == 6


def test_a_template_that_the_messages_break_is_an_error(
    given: tuple[Run, Inputs], own_model: Path
) -> None:
    (own_model / "chat_template.jinja").write_text("{{ raise_exception('no videos here') }}")
    with pytest.raises(Exception, match="no videos here"):
        rendered(*given, own_model)


def test_a_wrong_factor_gives_another_number_of_visual_tokens(
    given: tuple[Run, Inputs], own_model: Path
) -> None:
    made = rendered(*given, own_model)
    found = judged(*given, replace(made, num_visual_tokens=48))["visual tokens"]
    assert (found.level, "shared.video.factor" in found.cure) == ("fail", True)
    assert found.found == "48 of 6 frames of 32x16, wanted 6 at factor 16"


def test_a_prompt_that_replicas_refuse_fails(make_run: Make, given: tuple[Run, Inputs]) -> None:
    short = make_run("shared.max_prompt_tokens=100")
    made = Prompt("text", 101, 12, (0.4, 2.4, 4.4), writes_times=True)
    assert judged(short, given[1], made)["length"].level == "fail"


def test_timestamps_of_other_frames_fail(given: tuple[Run, Inputs], own_model: Path) -> None:
    made = rendered(*given, own_model)
    late = replace(made, stamps_s=tuple(time_s + 1 for time_s in made.stamps_s))
    found = judged(*given, late)["timestamps"]
    assert (found.level, found.found.startswith("up to 1.0")) == ("fail", True)
    none = judged(*given, replace(made, stamps_s=()))["timestamps"]
    assert (none.level, none.found) == ("fail", "0 in the prompt, wanted 3")
    silent = judged(*given, replace(made, stamps_s=(), writes_times=False))["timestamps"]
    assert silent.level == "ok"


def test_a_long_prompt_shows_its_ends() -> None:
    shown = prompt.ends("a" * 300 + "b" * 500)
    assert shown == "a" * 200 + " … " + "b" * 400
    assert prompt.ends("short\ntext") == "short text"
