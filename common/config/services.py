"""`[rollout]` and `[reward]`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.config.fields import Count, Host, PositiveInt, Seconds, Section


class Rollout(Section):
    """`[rollout]`: one replica."""

    host: Host = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8200
    """0 takes a free port; the registry tells everybody which."""
    advertise_host: Host | None = None
    """Host name other services reach this replica by; default: `host`, or this machine's name when
    `host` is every interface (0.0.0.0)."""
    replica: str | None = None
    """First part of the name in the registry and in consumer groups; default: the host name. A
    random part is added, so that a restarted replica is a new one."""
    weights: Literal["learner", "checkpoint"] = "learner"
    """Where weights come from: the learner of a ring, or `shared.model` on disk alone, for
    evaluation without a ring (no Redis, no prompts, /v1/generate only)."""
    device: Literal["cpu", "cuda"] = "cpu"
    gpu: Literal["given", "claim"] = "given"
    """Which GPUs: the first `tensor_parallel` that CUDA_VISIBLE_DEVICES allows, or as many that no
    other replica of this machine has claimed."""
    gpu_lock_dir: Path | None = None
    """Folder of the claims, shared by all replicas of a machine; needed with gpu = "claim"."""
    gpu_wait_s: Seconds | None = None
    """Longest wait for GPUs that others hold; None: until there are some."""
    max_model_len: PositiveInt = 24_576
    max_num_seqs: PositiveInt = 64
    max_num_batched_tokens: PositiveInt = 25_000
    kv_cache_bytes: PositiveInt | None = None
    """Size of the KV cache; None lets vLLM take gpu_memory_utilization of the card."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.85
    tensor_parallel: PositiveInt = 1
    cpu_threads: PositiveInt = 1
    """OpenMP threads of the engine on a CPU."""
    concurrent_prompts: PositiveInt = 8
    """Prompts in work at once in this replica."""
    lease_s: Seconds = 60.0
    """A claim not renewed for this long goes to another replica."""
    max_attempts: PositiveInt = 3
    """A prompt that so many replicas failed at goes to the dead letters; so does one that all
    replicas at work failed at, if they are fewer."""
    max_deaths: PositiveInt = 5
    """A prompt that so many replicas vanished with, or whose engines died over it, goes there too.
    From the second on it is worked on alone. Spot replicas vanish with good prompts: keep it above
    what one prompt may meet."""
    prompt_deadline_s: Seconds = 600.0
    """Decoding or generating one prompt for this long: another replica gets it as well, and the
    first answer counts. After twice as long this replica gives it up."""
    max_failures_in_a_row: PositiveInt = 20
    """After so many failed prompts in a row the process stops with a non-zero exit."""
    registry_ttl_s: Seconds = 10.0
    reward_patience_s: Seconds = 900.0
    """Answers wait this long for a reward service that is away; then their prompt goes back, to be
    answered anew once the service is there."""
    reward_timeout_s: Seconds = 10.0
    """Deadline of one scoring request."""
    weight_timeout_s: Seconds = 60.0
    """Longest wait for the policy version that a prompt asks for."""
    weight_staging: Literal["device", "host"] = "device"
    """Where new weights land beside those that serve. device: once more the model's bytes of the
    card, counted before the KV cache is sized; host: pinned memory, and a longer pause."""
    concurrent_generates: PositiveInt = 64
    """Requests of /v1/generate in work at once, beside the ring's prompts; more wait."""
    queued_generates: Count = 256
    """Requests that may wait for that; further ones get 429 with Retry-After."""
    max_clip_pixels: PositiveInt | None = None
    """Largest clip that is decoded, frames x height x width after resizing; None: what
    shared.max_prompt_tokens holds (two frames of shared.video.factor squared pixels a token)."""
    max_clip_frames: PositiveInt | None = None
    """Most frames of a clip; None: shared.video.max_frames, and never fewer than 768, the default
    of evaluations."""
    max_connections: PositiveInt = 1024
    """Open connections at once; the oldest idle ones make room for newcomers."""
    allow_remote: bool = False
    """Listen off loopback without a token."""

    @model_validator(mode="after")
    def _can_claim(self) -> Self:
        if self.gpu == "claim" and self.device != "cuda":
            raise ValueError(
                f"rollout.gpu: found 'claim' while rollout.device is {self.device!r}, "
                'wanted rollout.device = "cuda"'
            )
        if self.gpu == "claim" and self.gpu_lock_dir is None:
            raise ValueError(
                "rollout.gpu: found 'claim', wanted rollout.gpu_lock_dir, a folder that all "
                "replicas of this machine share"
            )
        return self


class Reward(Section):
    """`[reward]`: the reward service."""

    host: Host = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8100
    workers: PositiveInt = 1
    max_body_bytes: PositiveInt = 16 * 2**20
    max_items: PositiveInt = 4096
    """Items in one request."""
    max_responses: PositiveInt = 8192
    """Responses in one request, over all its items."""
    max_response_chars: PositiveInt = 1_000_000
    scorer_timeout_s: Seconds = 5.0
    """A scorer that takes longer on one response gives Unscored for it."""
    request_timeout_s: Seconds = 30.0
    """Third-party scoring of one request; responses left after it are Unscored."""
    scorer_processes: PositiveInt = 1
    """Child processes per third-party scorer and worker."""
    max_connections: PositiveInt = 1024
    """Open connections at once, per worker."""
    allow_remote: bool = False
    """Listen off loopback without a token."""
