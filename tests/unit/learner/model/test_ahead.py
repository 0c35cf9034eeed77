"""Clips are decoded before their turn within a bound, and features kept under what made them."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from common.config import Room
from common.messages import ClipRef
from common.video.frames import load_frames
from services.learner.model.features import ClipFeatures, TieredCache
from services.learner.model.policy import Policy, load_policy
from tests.fixtures.learner.groups import clip_ref
from tests.fixtures.learner.tiny_models import Architecture

ModelFolder = Callable[[Architecture], Path]


@pytest.fixture
def clips(clip_paths: tuple[Path, Path]) -> list[ClipRef]:
    """Four of them: two files, two frame rates."""
    return [
        clip_ref(path, architecture="qwen3_vl", fps=fps)
        for fps in (2.0, 1.0)
        for path in clip_paths
    ]


class Loads:
    """Counts what is decoded, and by which thread."""

    def __init__(self) -> None:
        self.clips: list[ClipRef] = []
        self.threads: set[str] = set()

    def __call__(self, clip: ClipRef) -> np.ndarray:
        self.clips.append(clip)
        self.threads.add(threading.current_thread().name)
        return load_frames(clip)


def policy_of(folder: Path, loads: Loads, **memory: int) -> Policy:
    room = Room.model_validate(memory)
    return load_policy(folder, load_frames=loads, memory=room)


def test_clips_decoded_ahead_are_not_decoded_again_and_are_counted(
    tiny_model: ModelFolder, clips: list[ClipRef]
) -> None:
    loads = Loads()
    policy = policy_of(tiny_model("qwen3_vl"), loads)
    policy.clips.prefetch(clips[:2])
    for one in policy.clips._ahead.values():
        one.pixels.result()
    assert policy.clips.decode_faults(clips[:3]) == [None] * 3
    policy.clips.features(clips[:3], device=policy.device)
    policy.clips.features(clips[:1], device=policy.device)
    assert len(loads.clips) == 3
    assert all(name.startswith("clips") for name in loads.threads)
    counts = policy.clips.take_counts()
    assert (counts.asked, counts.cached, counts.ahead) == (4, 1, 2)
    assert policy.clips.take_counts().asked == 0
    assert not policy.clips._ahead


def test_no_more_is_decoded_ahead_than_memory_allows(
    tiny_model: ModelFolder, clips: list[ClipRef]
) -> None:
    loads = Loads()
    policy = policy_of(tiny_model("qwen3_vl"), loads)
    size = policy.clips._pixel_bytes(clips[0])
    policy = policy_of(tiny_model("qwen3_vl"), loads, decode_ahead_bytes=2 * size)
    assert policy.clips._decode(clips[0]).nbytes == size
    loads.clips.clear()
    policy.clips.prefetch(clips)
    pending = [one.pixels for one in policy.clips._ahead.values()]
    for future in pending:
        future.result()
    assert loads.clips == clips[: len(pending)]
    assert 2 <= len(pending) < 4
    policy.clips.prefetch(clips[-1:])
    assert sum(one.num_bytes for one in policy.clips._ahead.values()) <= 2 * size


def test_what_nobody_asks_for_is_forgotten(tiny_model: ModelFolder, clips: list[ClipRef]) -> None:
    policy = policy_of(tiny_model("qwen3_vl"), Loads())
    policy.clips.prefetch(clips[:1])
    for _ in range(20):
        policy.clips.decode_faults([])
    assert not policy.clips._ahead


def test_features_of_another_processor_are_others(
    tiny_model: ModelFolder, clips: list[ClipRef]
) -> None:
    policy = policy_of(tiny_model("qwen3_vl"), Loads())
    other = policy_of(tiny_model("qwen3_vl"), Loads())
    assert policy.clips._key(clips[0]) == other.clips._key(clips[0])
    other.clips._processor.image_mean = [0.1, 0.2, 0.3]
    changed = type(policy.clips)(
        policy.model.model,
        other.clips._processor,
        frozen=True,
        load_frames=load_frames,
        memory=Room(),
    )
    assert policy.clips._key(clips[0]) != changed._key(clips[0])


def test_a_cache_of_no_bytes_keeps_nothing(tiny_model: ModelFolder, clips: list[ClipRef]) -> None:
    loads = Loads()
    policy = policy_of(tiny_model("qwen3_vl"), loads, feature_cache_bytes=0)
    for _ in range(2):
        policy.clips.features(clips[:1], device=policy.device)
    assert len(loads.clips) == 2


def test_what_the_device_has_no_room_for_stays_on_the_host() -> None:
    cache = TieredCache(device_bytes=0, host_bytes=100)
    cache.put("a", ClipFeatures(torch.zeros(10, 1), ()))
    assert "a" in cache
    found = cache.get("a", device=torch.device("cpu"))
    assert found is not None
    assert found.num_bytes == 40
    assert cache.get("b", device=torch.device("cpu")) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_leaves_the_device_is_pinned_on_the_host() -> None:
    device = torch.device("cuda")
    cache = TieredCache(device_bytes=40, host_bytes=100)
    for key in ("a", "b"):
        cache.put(key, ClipFeatures(torch.ones(10, 1, device=device), ()))
    assert cache._device.get("a") is None
    (kept,) = [cache._host.get("a")]
    assert kept is not None
    assert kept.embeds_MH.is_pinned()
    found = cache.get("a", device=device)
    assert found is not None
    assert found.embeds_MH.is_cuda
