"""The run file that is made for a checkpoint without one, and a replica that cannot start."""

import contextlib
import json
from pathlib import Path

import pytest

from common import config
from common.errors import ConfigError
from jobs.local.processes import ChildError
from jobs.local.replica import run_toml, sampling_of, started

ROOT = Path(__file__).resolve().parents[4]
TINY = ROOT / "deploy/tiny-qwen3vl"


def checkpoint(folder: Path, **model_config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model_config))
    return folder


def test_the_made_run_file_fits_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(run_toml(TINY))
    run = config.load(path, environ={})
    assert run.shared.model == str(TINY)
    assert run.rollout.max_model_len == 4096  # max_position_embeddings of the tiny model
    assert run.shared.max_prompt_tokens < run.rollout.max_model_len
    assert run.shared.video.sampling == sampling_of(TINY)
    assert run.shared.video.factor == 16  # patches of 8 pixels, merged 2 x 2
    # 4096 tokens of 24,000 hold 2446 of 14,336 visual ones: a prompt and an answer fit beside them.
    assert run.shared.video.total_pixels == 2446 * 16**2


def test_replicas_beside_each_other_share_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.local.replica.CUDA_DEVICE", tmp_path)
    path = tmp_path / "run.toml"
    shares = []
    for beside in (1, 2):
        path.write_text(run_toml(TINY, beside=beside))
        shares.append(config.load(path, environ={}).rollout.gpu_memory_utilization)
    assert shares == [0.85, 0.425]


def test_a_large_checkpoint_is_asked_as_published(tmp_path: Path) -> None:
    large = checkpoint(
        tmp_path / "large",
        text_config={"max_position_embeddings": 262_144},
        vision_config={"patch_size": 16, "spatial_merge_size": 2},
    )
    path = tmp_path / "run.toml"
    path.write_text(run_toml(large))
    run = config.load(path, environ={})
    assert run.rollout.max_model_len == 24_000
    sampling = run.shared.video.sampling
    assert (sampling.fps, sampling.min_pixels, sampling.total_pixels) == (2.0, 65_536, 14_680_064)


def test_older_checkpoints_have_patches_of_14(tmp_path: Path) -> None:
    older = checkpoint(
        tmp_path / "older", vision_config={"patch_size": 14, "spatial_merge_size": 2}
    )
    assert sampling_of(older).factor == 28


def test_a_folder_without_a_config_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--model: .*config\.json"):
        run_toml(tmp_path)


def test_a_replica_that_cannot_start_says_why_and_is_gone(tmp_path: Path) -> None:
    broken = tmp_path / "run.toml"
    broken.write_text('[shared]\nrun_id = "eval"\n')
    with (
        started(TINY, run_file=broken, folder=tmp_path / "replica") as replica,
        pytest.raises(ChildError, match=r"(?s)replica ended with code 2.*learner: missing"),
    ):
        replica.wait_until_ready()
    assert replica.child.restarts == 0
    assert replica.child.process.poll() is not None


def test_leaving_the_context_ends_the_replica(tmp_path: Path) -> None:
    with (
        contextlib.suppress(KeyboardInterrupt),
        started(TINY, run_file=None, folder=tmp_path) as replica,
    ):
        assert replica.child.process.poll() is None
        raise KeyboardInterrupt
    assert replica.child.process.poll() is not None
