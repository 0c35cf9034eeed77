"""A rollout replica of our own for one evaluation: checkpoint → URL, ended in any case.

    with started(LocalReplica(checkpoint, …)) as replica: replica.url, replica.token

It is `tempsamp rollout serve` with `rollout.weights = "checkpoint"`: the same engine that trains,
without Redis or a learner. Without a run file its settings are those of SPEC A9, fitted to the
checkpoint's own config.json.
"""

import asyncio
import contextlib
import json
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from pydantic import SecretStr

from common import config
from common.errors import ConfigError, EngineError
from common.rest import direct
from common.secrets import only as secrets_of_child
from common.video.sampling import VideoSampling
from jobs.local.processes import Child, Children, run_arguments
from jobs.local.redis import free_port

MAX_PROMPT_TOKENS = 20_480
MAX_MODEL_LEN = 24_000
MAX_VISUAL_TOKENS = 14_336
"""SPEC A9."""
READY_TIMEOUT_S = 1800.0
"""A large checkpoint on a cold disk."""
MAX_RESTARTS = 2
"""Once it has been ready: a crash costs a reload, and what it had in work is asked again. Never
more: a question that kills its engine would be asked for ever, and each try is a reload."""
POLL_S = 0.5
CUDA_DEVICE = Path("/dev/nvidiactl")
GPU_SHARE: float = config.Rollout.model_fields["gpu_memory_utilization"].default
ON_CPU: Mapping[str, Any] = MappingProxyType({"kv_cache_bytes": 2**30})


@dataclass(frozen=True)
class LocalReplica:
    """A running replica."""

    url: str
    token: SecretStr
    children: Children
    child: Child

    def wait_until_ready(self) -> None:
        """Until the model is loaded.

        Raises:
            ChildError: it ended instead; carries the end of its log.
            EngineError: not within half an hour.
        """
        asyncio.run(self.ready())

    async def watch(self) -> None:
        """Start it again when it dies; for ever.

        Raises:
            ChildError: it died too often.
        """
        await self.children.watch()

    async def ready(self) -> None:
        """`wait_until_ready`, for who has an event loop.

        Raises:
            ChildError, EngineError: as there.
        """
        deadline = time.monotonic() + READY_TIMEOUT_S
        async with direct.async_client() as client:
            while time.monotonic() < deadline:
                self.children.check()
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(f"{self.url}/readyz")).is_success:
                        self.child.restarts_allowed = MAX_RESTARTS
                        return
                await asyncio.sleep(POLL_S)
        raise EngineError(
            f"found no loaded model after {READY_TIMEOUT_S:.0f} s; {self.child.log} closes with:\n"
            f"{self.child.tail}"
        )


@contextlib.contextmanager
def started(
    checkpoint: Path, *, run_file: Path | None, folder: Path, beside: int = 1
) -> Iterator[LocalReplica]:
    """A replica that loads a checkpoint and opens any video; ended with its own children.

    Args:
        checkpoint: Hugging Face folder.
        run_file: TOML of a run, for `[shared]` and `[rollout]`; None makes one.
        folder: for its log and the made run file.
        beside: how many such replicas share the memory of a GPU, where no run file says it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if run_file is None:
        run_file = folder / "run.toml"
        run_file.write_text(run_toml(checkpoint, beside=beside), encoding="utf-8")
    port, token = free_port(), secrets.token_hex(16)
    with Children(folder) as children:
        child = children.start(
            "replica",
            _command(run_file, checkpoint=checkpoint, port=port),
            environ=secrets_of_child(token=token),
        )
        yield LocalReplica(f"http://127.0.0.1:{port}", SecretStr(token), children, child)


def run_toml(checkpoint: Path, *, beside: int = 1) -> str:
    """A run file for a checkpoint alone: sizes of SPEC A9, within what the checkpoint can hold, and
    of a GPU the share that is its own of `beside`.

    Raises:
        ConfigError: no config.json that can be read.
    """
    max_model_len = _max_model_len(_model_config(checkpoint))
    on_gpu = CUDA_DEVICE.exists()
    sections: dict[str, dict[str, Any]] = {
        "shared": {
            "run_id": "eval",
            "model": str(checkpoint),
            "max_prompt_tokens": min(MAX_PROMPT_TOKENS, max_model_len - 1),
            "dtype": "bfloat16" if on_gpu else "float32",
        },
        "shared.video": sampling_of(checkpoint).model_dump(),
        "rollout": {
            "device": "cuda" if on_gpu else "cpu",
            "max_model_len": max_model_len,
            "max_num_batched_tokens": max_model_len,
            **({"gpu_memory_utilization": GPU_SHARE / beside} if on_gpu else ON_CPU),
        },
        # A run file has a learner's section; nothing of it is read here.
        "learner": {"rows": "none.jsonl", "run_dir": "none", "steps": 1},
    }
    return "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        for name, keys in sections.items()
    )


def sampling_of(checkpoint: Path) -> VideoSampling:
    """Frames as SPEC A9 evaluates, with sides that fit the checkpoint's patches.

    A checkpoint that holds fewer tokens than SPEC A9 wants gets the same share of them as frames.
    """
    model_config = _model_config(checkpoint)
    vision = model_config.get("vision_config", {})
    factor = vision.get("patch_size", 16) * vision.get(
        "spatial_merge_size", vision.get("merge_size", 2)
    )
    fitting = MAX_VISUAL_TOKENS * _max_model_len(model_config) // MAX_MODEL_LEN
    return evaluation_sampling(factor, max_visual_tokens=fitting)


def evaluation_sampling(
    factor: int = 32, *, max_visual_tokens: int = MAX_VISUAL_TOKENS
) -> VideoSampling:
    """SPEC A9: 2 fps, at least 64 visual tokens a frame pair, 14,336 a clip."""
    return VideoSampling(
        min_pixels=64 * factor**2,
        max_pixels=768 * factor**2,
        total_pixels=max_visual_tokens * factor**2,
        factor=factor,
    )


def _command(run_file: Path, *, checkpoint: Path, port: int) -> list[str]:
    settings = {
        "shared.model": str(checkpoint.resolve()),
        # Links out of --video-root are common, and nobody but this evaluation has the token.
        "shared.video.roots": ["/"],
        "rollout.weights": "checkpoint",
        "rollout.host": "127.0.0.1",
        "rollout.port": port,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return [
        *(sys.executable, "-m", "tempsamp", "rollout", "serve"),
        *run_arguments(run_file, overrides),
    ]


def _max_model_len(model_config: dict[str, Any]) -> int:
    text_config = model_config.get("text_config", model_config)
    held: int = text_config.get("max_position_embeddings", MAX_MODEL_LEN)
    return min(MAX_MODEL_LEN, held)


def _model_config(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / "config.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--model: {path}: {error}: wanted a checkpoint folder") from error
    return found
