"""`[learner]` and its tables: optimizer, validation; `objective.py` has loss and advantage."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from common.config.curriculum import EarlyStop, Phase, Pool, refuse_modes
from common.config.fields import Count, Host, Positive, PositiveInt, Seconds, Section
from common.config.kernels import Kernels
from common.config.lora import Lora
from common.config.objective import Advantage, Loss
from common.config.preset import Preset
from common.config.room import Room
from common.config.watching import DumpSteps, KeepGroups, Tracking
from common.messages import Mode

Decay = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Section):
    """`[learner.optimizer]`: AdamW."""

    lr: Positive = 1e-6
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """How much of the gradient's running mean, and of its square's, a step keeps."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of matrices; norms, biases and other vectors are not decayed."""
    warmup_steps: Count = 0
    """Linear warm-up; constant afterwards."""
    max_grad_norm: Positive = 1.0


class Validation(Section):
    """`[learner.validation]`: held-out rows, answered greedily while the policy trains."""

    rows: Path | None = None
    """Trainer rows, JSONL; without them nothing is validated."""
    every: PositiveInt = 50
    """Versions between two validations; the first and the last version always get one."""
    mode: Mode = "answer"
    limit: PositiveInt | None = None
    """Only the first queries; None: all."""
    max_tokens: PositiveInt | None = None
    """Longest answer; None: as in training, shared.sampling.max_tokens."""
    concurrency: PositiveInt = 16
    """Questions in work in each replica, beside its prompts."""


class Learner(Room):
    """`[learner]`: data, steps, publishing, checkpoints."""

    preset: Preset | None = None
    """seed: what this run file does not state itself, of [shared] too, is as in the public
    TempSamp-R1 code (`common.config.preset`)."""
    rows: Path
    """Trainer rows, JSONL (SPEC A1.1)."""
    run_dir: Path
    """Checkpoints, metrics.jsonl, config.json (resolved), groups."""
    host: Host = "127.0.0.1"
    """Address replicas reach rank 0's weight store by."""
    metrics_host: Host = "127.0.0.1"
    """Where rank 0 answers /metrics, /healthz and /readyz."""
    metrics_port: Annotated[int, Field(ge=0, le=65_535)] = 8300
    """0 takes a free port; the log line `listening` says which."""
    allow_remote: bool = False
    """Answer them off loopback without a token."""
    device: Literal["cpu", "cuda"] = "cpu"
    steps: PositiveInt
    groups_per_step: PositiveInt = 16
    updates_per_batch: PositiveInt = 1
    """Optimizer updates on each step's groups, before the new weights are published. From the
    second on, ratios are taken to the policy before the first and loss.clip_low, clip_high and
    dual_clip act; with 1 ratios are 1 and they are inert. lr and warm-up count steps."""
    max_staleness: Count = 1
    """Policy versions a group may lag behind when it is trained on."""
    freeze_vision: bool = True
    shard_within: Literal["all", "node"] | PositiveInt = "all"
    """Which ranks share one copy of what is trained: all, those of a node, or so many in turn. The
    others hold copies (HSDP): between nodes only gradients travel, for more memory on each rank."""
    collective_timeout_s: Seconds = 1800.0
    """Deadline of the ranks' own collectives; longer than wait_for_replicas_s, in which other ranks
    hear nothing of rank 0."""
    publish: Literal["full", "delta"] = "full"
    """What a step's weights travel as: whole, or as what changed since the last version (lossless;
    a few percent of bfloat16 values at a learning rate of 1e-6). Frozen tensors travel once."""
    overlap_publish: Literal["auto", "on", "off"] = "auto"
    """Train the next step while a version travels; needs max_staleness >= 1. auto: on GPUs."""
    weight_staging: Literal["device", "host"] = "device"
    """Where rank 0 keeps what travels: once the model's bytes in shared.dtype."""
    publish_timeout_s: Seconds = 20.0
    """Deadline of meeting, of each bucket, and of applying; who misses it is left out for now."""
    bucket_bytes: PositiveInt = 64 * 2**20
    """Bytes of one weight broadcast."""
    min_replicas: PositiveInt = 1
    """Replicas that must have joined before the first prompt is fed."""
    wait_for_replicas_s: Seconds = 600.0
    checkpoint_every: Count = 50
    """Steps between checkpoints; 0: only at the end. They are written while the next steps train,
    from a copy in host memory: what a rank holds of weights and moments, and on the first rank the
    whole model in shared.dtype. A run that is killed goes back at most two times as many steps."""
    keep_checkpoints: PositiveInt = 2
    """The newest ones."""
    keep_best: bool = True
    """With validation: also save and keep the version with the highest mean IoU on held-out rows,
    which checkpoints/best.json names."""
    probe_every: Count = 20
    """Versions between probe groups, generated and re-scored at one version; the first version
    gets one before any prompt is fed. 0: never."""
    probe_max_gap_nats: Positive | None = None
    """Largest distance of a token's log-probability, engine against learner, in a probe; beyond it
    the run stops with a checkpoint. None: 0.01 in float32, 1 in bfloat16 (shared.dtype)."""
    probe_mean_gap_nats: Positive | None = None
    """The same for the mean over the probe's tokens. None: 0.001 in float32, 0.1 in bfloat16."""
    max_returns: PositiveInt = 3
    """A prompt whose answers came back unusable so often, while others were usable, is given up for
    this epoch."""
    max_unusable_in_a_row: PositiveInt = 64
    """After so many prompts given up and groups that this learner cannot train on, one after the
    other, the run stops with a checkpoint: something is wrong with all of them."""
    max_without_verdict_s: Seconds = 1800.0
    """Waiting so long for answers with verdicts, while there is a reason why none come, the run
    stops with a checkpoint. With no replica at work it waits on."""
    kernels: Kernels = Kernels()
    optimizer: Optimizer = Optimizer()
    loss: Loss = Loss()
    advantage: Advantage = Advantage()
    validation: Validation = Validation()
    lora: Lora | None = None
    """Train adapters; None: all weights."""
    dump_steps: DumpSteps = DumpSteps()
    keep_groups: KeepGroups = KeepGroups()
    tracking: Tracking = Tracking()
    phases: tuple[Phase, ...] = ()
    """One after the other; none: the whole run asks for answers alone."""
    early_stop: EarlyStop = EarlyStop()
    pool: Pool = Pool()

    @property
    def overlaps_publish(self) -> bool:
        """Whether a step may run while its predecessor's weights travel."""
        wanted = {"auto": self.device == "cuda" and self.max_staleness > 0}
        return wanted.get(self.overlap_publish, self.overlap_publish == "on")

    @model_validator(mode="before")
    @classmethod
    def _has_phases_instead_of_modes(cls, settings: Any) -> Any:
        return refuse_modes(settings)

    @model_validator(mode="after")
    def _can_stop_early(self) -> Self:
        if self.early_stop.patience is not None and self.validation.rows is None:
            raise ValueError(
                f"learner.early_stop.patience: found {self.early_stop.patience}, wanted "
                "learner.validation.rows with it"
            )
        return self

    @model_validator(mode="after")
    def _ranks_outlast_the_wait_for_replicas(self) -> Self:
        if self.collective_timeout_s <= self.wait_for_replicas_s:
            raise ValueError(
                f"learner.collective_timeout_s: found {self.collective_timeout_s:g}, wanted more "
                f"than learner.wait_for_replicas_s, {self.wait_for_replicas_s:g}: other ranks "
                "would give rank 0 up while it waits"
            )
        return self

    @model_validator(mode="after")
    def _can_overlap(self) -> Self:
        if self.overlap_publish == "on" and self.max_staleness == 0:
            raise ValueError(
                "learner.overlap_publish: found 'on' while learner.max_staleness is 0, wanted "
                "max_staleness >= 1: a step would wait for groups of the version that travels"
            )
        return self
