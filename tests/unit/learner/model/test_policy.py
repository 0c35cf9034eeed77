"""The policy around a checkpoint: features, checks on groups, frozen towers, logits in pieces."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.errors import VideoError
from common.messages import Int32Array, ScoredGroup
from services.learner.batching.batch import IDLE, MicroBatch, collate
from services.learner.model import policy as policy_module
from services.learner.model.features import ClipFeatures, FeatureCache
from services.learner.model.policy import Policy, load_policy
from tests.fixtures.learner.groups import clip_ref, limits, scored_group
from tests.fixtures.learner.tiny_models import ARCHITECTURES, Architecture, patch_factor

ModelFolder = Callable[[Architecture], Path]


@pytest.fixture
def policy(tiny_model: ModelFolder) -> Policy:
    return load_policy(tiny_model("qwen3_vl"))


@pytest.fixture
def group(policy: Policy, tiny_model: ModelFolder, clip_paths: tuple[Path, Path]) -> ScoredGroup:
    return scored_group(
        tiny_model("qwen3_vl"),
        clip_ref(clip_paths[0], architecture="qwen3_vl"),
        video_token_id=policy.model.config.video_token_id,
        answer_lengths=(3, 2),
    )


def micro_batch(*groups: ScoredGroup) -> MicroBatch:
    advantages = [[1.0] * len(group.samples) for group in groups]
    (batch,) = collate(groups, advantages, limits=limits()).micro_batches
    return batch


@pytest.mark.parametrize(
    ("device", "installed", "attention", "said"),
    [
        ("cpu", True, "sdpa", False),
        ("cuda", True, "flash_attention_2", False),
        ("cuda", False, "sdpa", True),
    ],
)
def test_the_tower_falls_back_to_sdpa_and_says_so(
    device: str,
    installed: bool,
    attention: str,
    said: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("transformers.utils.is_flash_attn_2_available", lambda: installed)
    with caplog.at_level("INFO", logger=policy_module.__name__):
        assert policy_module._default_attention(torch.device(device)) == attention
    assert ("the vision tower attends with SDPA" in caplog.text) == said


def test_scores_are_nats_of_a_distribution(policy: Policy, group: ScoredGroup) -> None:
    scores = policy(micro_batch(group))
    mask_GSR = micro_batch(group).answer_mask_GSR
    vocabulary = policy.model.config.text_config.vocab_size
    assert scores.logprobs_GSR.dtype == torch.float32
    assert (scores.logprobs_GSR[mask_GSR] < 0).all()
    assert (scores.entropy_GSR[mask_GSR] > 0).all()
    assert (scores.entropy_GSR[mask_GSR] < torch.tensor(float(vocabulary)).log()).all()
    assert not scores.logprobs_GSR[~mask_GSR].any()
    assert not scores.entropy_GSR.requires_grad


def test_second_use_of_a_clip_takes_identical_features_from_the_cache(
    policy: Policy, group: ScoredGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = policy(micro_batch(group)).logprobs_GSR
    monkeypatch.setattr(policy.tower, "forward", _must_not_run)
    assert torch.equal(policy(micro_batch(group)).logprobs_GSR, first)


def _must_not_run(*_: object, **__: object) -> None:
    raise AssertionError("nothing was to be decoded or encoded")


def test_frozen_tower_has_no_gradient_and_a_trained_one_has(
    tiny_model: ModelFolder, group: ScoredGroup
) -> None:
    for freeze_vision in (True, False):
        policy = load_policy(tiny_model("qwen3_vl"), freeze_vision=freeze_vision)
        policy(micro_batch(group)).logprobs_GSR.sum().backward()
        with_gradient = {parameter.grad is not None for parameter in policy.tower.parameters()}
        assert with_gradient == {not freeze_vision}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("freeze_vision", [True, False])
def test_micro_batch_with_nothing_to_train_on_reaches_every_parameter_with_zeros(
    tiny_model: ModelFolder,
    architecture: Architecture,
    monkeypatch: pytest.MonkeyPatch,
    *,
    freeze_vision: bool,
) -> None:
    policy = load_policy(tiny_model(architecture), freeze_vision=freeze_vision)
    monkeypatch.setattr(policy.clips, "_load_frames", _must_not_run)
    scores = policy(IDLE)
    scores.logprobs_GSR.sum().backward()
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert all(p.grad is not None and not p.grad.any() for p in trained)


def test_answer_with_a_placeholder_id_is_scored_like_any_other(
    policy: Policy, group: ScoredGroup
) -> None:
    token_id = policy.model.config.video_token_id
    odd = group.samples[0].model_copy(update={"token_ids": Int32Array([token_id, 5, 6])})
    scores = policy(micro_batch(group.model_copy(update={"samples": (odd, group.samples[1])})))
    assert torch.isfinite(scores.logprobs_GSR).all()


def test_logits_in_pieces_give_the_same_scores_and_gradients(
    tiny_model: ModelFolder, group: ScoredGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for max_logits in (2**27, 700):
        monkeypatch.setattr(policy_module, "MAX_LOGITS", max_logits)
        policy = load_policy(tiny_model("qwen3_vl"))
        scores = policy(micro_batch(group))
        scores.logprobs_GSR.sum().backward()
        results.append((*scores, policy.model.lm_head.weight.grad))
    for whole, pieces in zip(*results, strict=True):
        assert torch.allclose(whole, pieces, atol=1e-5)


def test_group_as_derived_from_its_clip_passes(policy: Policy, group: ScoredGroup) -> None:
    policy.assert_group_matches(group)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid_thw": (3, 4, 6)}, r"found patch grid \(3, 4, 6\), wanted \(3, 4, 4\)"),
        ({"num_visual_tokens": 13}, "found number of visual tokens 13, wanted 12"),
        ({"prompt_token_ids": (1, 2)}, "found number of placeholders in the prompt 0, wanted 12"),
    ],
)
def test_group_of_other_pixels_is_refused(
    policy: Policy, group: ScoredGroup, change: dict[str, object], message: str
) -> None:
    with pytest.raises(VideoError, match=message) as caught:
        policy.assert_group_matches(group.model_copy(update=change))
    assert "replica-a" in str(caught.value)
    assert "shared.video" in str(caught.value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_frame_sides_that_the_checkpoint_cannot_patch_are_refused(
    architecture: Architecture, tiny_model: ModelFolder, clip_paths: tuple[Path, Path]
) -> None:
    policy = load_policy(tiny_model(architecture))
    clip = clip_ref(clip_paths[0], architecture=architecture)
    odd = clip.model_copy(update={"frame_hw": (clip.frame_hw[0] + 8, clip.frame_hw[1])})
    with pytest.raises(VideoError, match=f"wanted multiples of {patch_factor(architecture)}"):
        policy.clips.features([odd], device=policy.device)


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="found architecture Qwen2ForCausalLM, wanted one of"):
        load_policy(tmp_path)


def features(num_tokens: int) -> ClipFeatures:
    """4 bytes a token."""
    return ClipFeatures(embeds_MH=torch.zeros(num_tokens, 1), deepstack_DMH=())


def test_feature_cache_drops_the_least_recently_used_beyond_its_bytes() -> None:
    cache = FeatureCache(max_bytes=100)
    cache.put("a", features(10))
    cache.put("b", features(10))
    assert cache.get("a") is not None
    cache.put("c", features(10))
    assert cache.get("b") is None
    assert cache.get("a") is not None
    assert cache.get("c") is not None


def test_feature_cache_does_not_keep_what_is_larger_than_itself() -> None:
    cache = FeatureCache(max_bytes=100)
    cache.put("a", features(10))
    cache.put("huge", features(26))
    assert len(cache) == 1
    assert cache.get("a") is not None


class TestGroupFaults:
    def test_usable_groups_have_none_and_are_decoded_once(
        self, policy: Policy, group: ScoredGroup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert policy.group_faults([group]) == {}
        monkeypatch.setattr(policy.clips, "_load_frames", _must_not_run)
        assert policy.group_faults([group]) == {}
        policy(micro_batch(group))
        assert policy.group_faults([group]) == {}

    def test_each_fault_is_named_by_its_prompt(
        self, policy: Policy, group: ScoredGroup, tmp_path: Path
    ) -> None:
        clip = group.clip.model_copy(update={"uri": str(tmp_path / "gone.mp4"), "sha256": "1"})
        changed = {
            "tokens": {"num_visual_tokens": group.num_visual_tokens + 1},
            "gone": {"clip": clip},
            "strange": {"prompt_token_ids": (*group.prompt_token_ids, 10**6)},
            "negative": {"prompt_token_ids": (*group.prompt_token_ids, -1)},
            "good": {},
        }
        faults = policy.group_faults(
            [group.model_copy(update={"prompt_id": key, **keys}) for key, keys in changed.items()]
        )
        assert faults.keys() == {"tokens", "gone", "strange", "negative"}
        assert "number of visual tokens" in faults["tokens"]
        assert "No such file" in faults["gone"]
        assert "found token ids" in faults["strange"]
        assert "-1" in faults["negative"]

    def test_a_file_that_came_back_is_decoded(
        self, policy: Policy, group: ScoredGroup, tmp_path: Path
    ) -> None:
        path = tmp_path / "late.mp4"
        late = group.model_copy(update={"clip": group.clip.model_copy(update={"uri": str(path)})})
        assert policy.group_faults([late]).keys() == {group.prompt_id}
        path.write_bytes(Path(group.clip.uri).read_bytes())
        assert policy.group_faults([late]) == {}
