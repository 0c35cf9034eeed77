"""`make bench-learner`: counts are those of real calls, sharing is measured against its ideal."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from services.learner import train
from services.learner.batching.batch import collate
from services.learner.model.policy import load_policy
from services.learner.state.saving import Saving
from tests.bench.learner import __main__ as bench
from tests.bench.learner import counted_learner
from tests.bench.learner.beside_trl import BesideTrl, ratio_of
from tests.bench.learner.counting import Counts
from tests.bench.spread import Spread
from tests.fixtures.learner.groups import clip_ref, limits, scored_group
from tests.fixtures.learner.tiny_models import Architecture


def test_counts_are_what_the_models_are_given(
    tiny_model: Callable[[Architecture], Path], clip_paths: tuple[Path, Path]
) -> None:
    model = tiny_model("qwen2_5_vl")
    policy, counts = load_policy(model), Counts()
    counts.watch(policy.model.model, trains=True)
    clip = clip_ref(clip_paths[0], architecture="qwen2_5_vl")
    group = scored_group(
        model,
        clip,
        video_token_id=policy.model.config.video_token_id,
        answer_lengths=(5, 2, 4),
    )
    (batch,) = collate([group], [[1.0] * 3], limits=limits()).micro_batches
    for _ in range(2):  # the tower is frozen: its features stay
        policy(batch)
    time, height, width = group.grid_thw
    assert counts.vision_patches == time * height * width
    assert counts.llm_token_forwards == 2 * (len(group.prompt_token_ids) + 4 + 3 + 1)
    assert counts.per_step(2)["sampling_token_forwards"] == 0


def test_calls_without_gradient_are_sampling(
    tiny_model: Callable[[Architecture], Path],
) -> None:
    policy, counts = load_policy(tiny_model("qwen2_5_vl")), Counts()
    counts.watch(policy.model.model)
    embeds = torch.zeros(2, 7, 64)
    with torch.no_grad():
        counts_before = vars(counts).copy()
        policy.model.model.language_model.register_forward_pre_hook(_stop)
        with pytest.raises(StopIteration):
            policy.model.model.language_model(inputs_embeds=embeds)
    assert counts_before["sampling_token_forwards"] == 0
    assert (counts.sampling_token_forwards, counts.llm_token_forwards) == (14, 0)


def _stop(*_: object) -> None:
    raise StopIteration


def test_the_learner_that_is_watched_counts_its_policy(
    tiny_model: Callable[[Architecture], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(tiny_model("qwen2_5_vl"))
    monkeypatch.setattr(train, "start_policy", lambda: policy)
    monkeypatch.setattr(Saving, "save", lambda *_: None)
    counted_learner.watch(tmp_path / "counts.json")
    # looked up anew: what a run calls is what was put in its place
    watched: Any = train.start_policy
    watched().model.model.language_model.register_forward_pre_hook(_stop)
    with pytest.raises(StopIteration):
        policy.model.model.language_model(inputs_embeds=torch.zeros(2, 7, 64))
    Saving.save(None, 2)  # type: ignore[arg-type]
    found = json.loads((tmp_path / "counts.json").read_text())
    assert found["llm_token_forwards"] == 7


def test_ratios_are_taken_pair_by_pair() -> None:
    theirs = [{"wall_s": 8.0}, {"wall_s": 9.0}, {"wall_s": 20.0}]
    ours = [{"wall_s": 1.0, "save_s": 1.0}, {"wall_s": 3.0}, {"wall_s": 2.0}]
    assert ratio_of(theirs, ours, "wall_s") == Spread(8.0, 3.0, 10.0)


def test_a_save_is_shown_as_share_of_the_steps_between_two() -> None:
    one = Spread(1.0, 1.0, 1.0)
    found = BesideTrl(one, one, one, ours=[{"wall_s": 0.5, "save_s": 1.0}], theirs=[])
    assert found.checkpoint_stall.median == pytest.approx(1 / 25)


def test_sharing_is_measured_for_every_architecture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "learner.json"
    monkeypatch.setattr(
        sys,
        "argv",
        ["bench", "--repeats", "1", "--prompt-tokens", "160", "--json", str(file)],
    )
    bench.main()
    report = json.loads(file.read_text())
    assert set(report["sharing"]) == {"qwen3_vl", "qwen2_5_vl", "qwen3_5"}
    assert all(share > 0 for share in report["sharing"].values())
    for details in report["sharing_details"].values():
        assert details["ideal_speedup"] == pytest.approx(8 * 176 / (160 + 128), rel=1e-3)
        assert details["relative_gradient_error"] < 1e-4
    shown = capsys.readouterr().out
    assert "left out: no --trl" in shown
    assert "qwen3_5: share of the ideal" in shown
