"""One TOML per run → frozen, typed sections. `load(path, "learner")` → `(Shared, Learner)`.

A service reads `[shared]` and its own section, nothing more; what two services must agree on lives
once in `[shared]`. Unknown keys are refused with the nearest valid name. Secrets do not belong in a
run file: they come from the environment, which only `common.secrets` reads. Fields are documented
by the string below them.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from common.errors import ConfigError
from common.messages import Mode, Sampling
from common.secrets import (
    REDIS_PASSWORD,
    ROLES,
    TOKEN,
    TOKEN_OF,
    Tokens,
    has_credentials,
    secret,
)
from common.video.sampling import VideoSampling

Strategy = Literal["none", "mixed", "downscale", "anchor", "shaping", "sft"]
"""How GT enters a group (SPEC B1): none = GRPO, shaping = TempSamp-R1, sft = GT answers alone."""
ThinkInjection = Literal["bare", "splice", "none"]

Positive = Annotated[float, Field(gt=0)]
PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


def _without_brackets(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


Host = Annotated[str, AfterValidator(_without_brackets)]
"""A name, or an address of either family. Brackets may stand around an IPv6 address, as in a URL:
one variable fills both in deploy/compose.node.yml."""


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Video(VideoSampling):
    """`[shared.video]`: where videos lie, and which frames stand for a clip."""

    roots: Annotated[tuple[Path, ...], Field(min_length=1)] = (Path(),)
    """Folders below which videos may be opened, all links followed. A row's relative path starts
    from the first one. The default is the working directory."""
    allow_urls: bool = False
    """Whether rows may name http and https addresses, which are downloaded once."""
    downloads: Path | None = None
    """Where to; needed with `allow_urls`."""
    cache: Path | None = None
    """Clip cache that `tempsamp data preprocess` filled; None decodes every clip on both sides."""
    cache_mode: Literal["prefer", "strict"] = "prefer"
    """prefer: what the cache lacks is decoded, counted and warned of. strict: it is an error, and
    the source files need not be there."""

    @property
    def sampling(self) -> VideoSampling:
        """The part that decides pixels."""
        return VideoSampling(**self.model_dump(include=set(VideoSampling.model_fields)))

    @model_validator(mode="after")
    def _has_folders(self) -> Self:
        if self.allow_urls and self.downloads is None:
            raise ValueError(
                "shared.video.allow_urls: found true, wanted shared.video.downloads, a folder"
            )
        if self.cache_mode == "strict" and self.cache is None:
            raise ValueError(
                "shared.video.cache_mode: found 'strict', wanted shared.video.cache, a folder"
            )
        return self


class Scoring(Section):
    """`[shared.scoring]`: what the reward service is asked for."""

    parser: str = "default"
    format_weight: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the format reward: 0.1 as the public code, 1.0 as the paper's peers (SPEC B2)."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """tau of the non-linear shaping (paper eq. 4)."""
    alpha1: Annotated[float, Field(ge=0)] = 0.01
    alpha2: Annotated[float, Field(gt=0)] = 1.0
    answer_decimals: Annotated[int, Field(ge=0, le=3)] = 2
    """Decimals of the injected answer's times."""
    think_injection: ThinkInjection = "splice"
    """What is injected in think mode (SPEC B3): the bare answer, the answer spliced onto the best
    rollout's thought, or nothing."""


class Shared(Section):
    """`[shared]`: what the services of one run must agree on."""

    run_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """Prefix of every Redis key and field of every log line."""
    model: str
    """What the run starts from: a Hugging Face checkpoint folder, or an id of the hub with or
    without revision (`Qwen/Qwen3-VL-4B-Instruct@main`); `common.model.folder` finds it."""
    redis_url: str = "redis://127.0.0.1:6379/0"
    """Without a password: that comes from TEMPSAMP_REDIS_PASSWORD. rediss:// is TLS."""
    redis_user: str | None = None
    """ACL user; None: Redis' own `default`. Each service may have another one."""
    redis_ca: Path | None = None
    """File of the CA that signed the server's certificate; None: those that the system trusts."""
    redis_allow_open: bool = False
    """Use a Redis on another machine without a password."""
    reward_url: str = "http://127.0.0.1:8100"
    seed: Count = 0
    strategy: Strategy = "shaping"
    group_size: Annotated[int, Field(ge=2)] = 8
    """Answers per prompt, the injected one included."""
    max_prompt_tokens: PositiveInt = 20_480
    """A longer prompt is refused by the replica and counted."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute and transfer type; the optimizer always keeps float32 masters."""
    video: Video = Video()
    sampling: Sampling = Sampling()
    scoring: Scoring = Scoring()
    redis_password: SecretStr | None = None
    """Filled from the environment."""
    token: SecretStr | None = None
    """Bearer token of the REST services for the roles that have none of their own, filled from the
    environment; so are these."""
    control_token: SecretStr | None = None
    generate_token: SecretStr | None = None
    score_token: SecretStr | None = None

    @model_validator(mode="after")
    def _urls_hold_no_secret(self) -> Self:
        for knob, url, instead in (
            ("redis_url", self.redis_url, f"{REDIS_PASSWORD} and shared.redis_user"),
            ("reward_url", self.reward_url, f"{TOKEN} or {TOKEN_OF['score']}"),
        ):
            if has_credentials(url):
                raise ValueError(
                    f"shared.{knob}: found a user or a password in it, wanted none, as it is "
                    f"logged and saved with checkpoints: {instead}"
                )
        return self

    @property
    def tokens(self) -> Tokens:
        """Bearer tokens by role."""
        return Tokens(
            general=self.token,
            control=self.control_token,
            generate=self.generate_token,
            score=self.score_token,
        )

    @property
    def injects(self) -> bool:
        """Whether the ground truth joins each group as an off-policy sample."""
        return self.strategy != "none"

    @property
    def num_policy_samples(self) -> int:
        """Answers the replica generates: none is generated to be thrown away."""
        return self.group_size - 1 if self.injects else self.group_size


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
    gpu_wait_s: Positive | None = None
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
    lease_s: Positive = 60.0
    """A claim not renewed for this long goes to another replica."""
    max_attempts: PositiveInt = 3
    """A prompt that so many replicas failed at goes to the dead letters; so does one that all
    replicas at work failed at, if they are fewer."""
    max_deaths: PositiveInt = 5
    """A prompt that so many replicas vanished with, or whose engines died over it, goes there too.
    From the second on it is worked on alone. Spot replicas vanish with good prompts: keep it above
    what one prompt may meet."""
    prompt_deadline_s: Positive = 600.0
    """Decoding or generating one prompt for this long: another replica gets it as well, and the
    first answer counts. After twice as long this replica gives it up."""
    max_failures_in_a_row: PositiveInt = 20
    """After so many failed prompts in a row the process stops with a non-zero exit."""
    registry_ttl_s: Positive = 10.0
    reward_patience_s: Positive = 900.0
    """Answers wait this long for a reward service that is away; then their prompt goes back, to be
    answered anew once the service is there."""
    reward_timeout_s: Positive = 10.0
    """Deadline of one scoring request."""
    weight_timeout_s: Positive = 60.0
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
    scorer_timeout_s: Positive = 5.0
    """A scorer that takes longer on one response gives Unscored for it."""
    request_timeout_s: Positive = 30.0
    """Third-party scoring of one request; responses left after it are Unscored."""
    scorer_processes: PositiveInt = 1
    """Child processes per third-party scorer and worker."""
    max_connections: PositiveInt = 1024
    """Open connections at once, per worker."""
    allow_remote: bool = False
    """Listen off loopback without a token."""


class Optimizer(Section):
    """`[learner.optimizer]`: AdamW."""

    lr: Positive = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup_steps: Count = 0
    """Linear warm-up; constant afterwards."""
    max_grad_norm: Positive = 1.0


class Loss(Section):
    """`[learner.loss]`: the policy loss (DESIGN: Learner; SPEC A7)."""

    clip_low: Positive = 0.2
    clip_high: Positive = 0.28
    dual_clip: Annotated[float, Field(gt=1)] | None = 3.0
    level: Literal["token", "sequence"] = "token"
    """Ratio per token (GRPO/DAPO), or per sequence (GSPO: answers are averaged, not tokens)."""
    normalize: Literal["tokens", "constant"] = "tokens"
    """Denominator: all trained tokens, or a constant per sequence (Dr.GRPO)."""
    constant_tokens: PositiveInt = 256
    """Tokens per sequence that the constant denominator assumes."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the k3 estimate against a frozen start checkpoint; 0 keeps no copy."""
    importance_cap: Positive | None = 2.0
    """Truncation of the importance weight (learner over rollout) of policy rows; None: off."""


class Advantage(Section):
    """`[learner.advantage]`: rewards of a group → advantages (SPEC A7, B1)."""

    scale_by_std: bool = True
    """False: centre only (Dr.GRPO)."""
    std_floor: Annotated[float, Field(ge=0)] = 0.0
    """Lower bound on the std, so that near-ties are not blown up."""
    downscale: Positive = 0.8
    """strategy downscale: factor on the injected row's own reward, the largest there is."""
    anchor: Positive = 1.2
    """strategy anchor: A_GT = anchor x best policy advantage."""
    anchor_floor: Annotated[float, Field(ge=0)] = 0.0
    """strategy anchor: least A_GT; above 0, GT still teaches when all policy rewards tie."""


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


class Learner(Section):
    """`[learner]`: data, steps, publishing, checkpoints."""

    rows: Path
    """Trainer rows, JSONL (SPEC A1.1)."""
    run_dir: Path
    """Checkpoints, metrics.jsonl, the resolved config."""
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
    modes: tuple[Mode, ...] = ("answer",)
    """Mode of each epoch; the last one repeats. ("answer", "think") is the paper's hybrid CoT."""
    max_staleness: Count = 1
    """Policy versions a group may lag behind when it is trained on."""
    freeze_vision: bool = True
    gradient_checkpointing: bool = False
    micro_batch_groups: PositiveInt = 8
    """Groups of equal prompt shape forwarded together."""
    collective_timeout_s: Positive = 1800.0
    """Deadline of the ranks' own collectives; longer than wait_for_replicas_s."""
    publish: Literal["full", "delta"] = "full"
    """What a step's weights travel as: whole, or as what changed since the last version (lossless;
    a few percent of bfloat16 values at a learning rate of 1e-6). Frozen tensors travel once."""
    overlap_publish: Literal["auto", "on", "off"] = "auto"
    """Train the next step while a version travels; needs max_staleness >= 1. auto: on GPUs."""
    weight_staging: Literal["device", "host"] = "device"
    """Where rank 0 keeps what travels: once the model's bytes in shared.dtype."""
    publish_timeout_s: Positive = 20.0
    """Deadline of meeting, of each bucket, and of applying; who misses it is left out for now."""
    bucket_bytes: PositiveInt = 64 * 2**20
    """Bytes of one weight broadcast."""
    min_replicas: PositiveInt = 1
    """Replicas that must have joined before the first prompt is fed."""
    wait_for_replicas_s: Positive = 600.0
    checkpoint_every: Count = 50
    """Steps between checkpoints; 0: only at the end."""
    keep_checkpoints: PositiveInt = 2
    probe_every: Count = 20
    """Versions between probe groups, generated and re-scored at one version; 0: never."""
    max_returns: PositiveInt = 3
    """A prompt whose answers came back unusable so often, while others were usable, is given up for
    this epoch."""
    max_unusable_in_a_row: PositiveInt = 64
    """After so many prompts given up and groups that this learner cannot train on, one after the
    other, the run stops with a checkpoint: something is wrong with all of them."""
    max_without_verdict_s: Positive = 1800.0
    """Waiting so long for answers with verdicts, while there is a reason why none come, the run
    stops with a checkpoint. With no replica at work it waits on."""
    optimizer: Optimizer = Optimizer()
    loss: Loss = Loss()
    advantage: Advantage = Advantage()
    validation: Validation = Validation()

    @property
    def overlaps_publish(self) -> bool:
        """Whether a step may run while its predecessor's weights travel."""
        wanted = {"auto": self.device == "cuda" and self.max_staleness > 0}
        return wanted.get(self.overlap_publish, self.overlap_publish == "on")

    @model_validator(mode="after")
    def _can_overlap(self) -> Self:
        if self.overlap_publish == "on" and self.max_staleness == 0:
            raise ValueError(
                "learner.overlap_publish: found 'on' while learner.max_staleness is 0, wanted "
                "max_staleness >= 1: a step would wait for groups of the version that travels"
            )
        return self


class Run(Section):
    """A whole run file."""

    shared: Shared
    rollout: Rollout = Rollout()
    reward: Reward = Reward()
    learner: Learner

    @model_validator(mode="after")
    def _sampling_fits_importance_sampling(self) -> Self:
        if self.shared.sampling.top_p < 1 and self.learner.loss.importance_cap is not None:
            raise ValueError(
                f"shared.sampling.top_p: found {self.shared.sampling.top_p}, wanted 1.0 while "
                f"learner.loss.importance_cap is {self.learner.loss.importance_cap}: truncated "
                "sampling is not the distribution of its log-probabilities; set top_p = 1.0, or "
                'importance_cap = "none"'
            )
        if self.shared.sampling.temperature != 1.0:
            raise ValueError(
                "shared.sampling.temperature: "
                f"found {self.shared.sampling.temperature}, wanted 1.0: "
                "log-probabilities are those of the raw policy"
            )
        return self


SECRETS = {
    "redis_password": REDIS_PASSWORD,
    "token": TOKEN,
    **{f"{role}_token": TOKEN_OF[role] for role in ROLES},
}
"""Fields of `[shared]` that a run file cannot have, and their variables."""
SectionName = Literal["rollout", "reward", "learner"]


def load(
    path: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
) -> Run:
    """Read a run file.

    Args:
        path: the TOML file.
        overrides: `section.key=value` strings; values are TOML (`learner.steps=10`),
            bare words are strings.
        environ: where secrets come from.

    Raises:
        ConfigError: the file is missing, is not TOML, or a key or value is wrong; names key,
            value and remedy.
    """
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    for override in overrides:
        _apply(document, override)
    return parse(document, environ=environ, source=os.fspath(path))


def parse(
    document: dict[str, Any], *, environ: Mapping[str, str] = os.environ, source: str = "config"
) -> Run:
    """Validate a parsed TOML document; see `load`."""
    document = _none_from_word(document)
    shared = document.get("shared")
    if isinstance(shared, dict):
        _fill_secrets(shared, environ=environ, source=source)
    try:
        return Run.model_validate(document)
    except ValidationError as error:
        raise _problems(source, error) from error


def load_reward(overrides: Sequence[str]) -> Reward:
    """`[reward]` without a run file: its defaults and `reward.key=value` overrides."""
    document: dict[str, Any] = {"reward": {}}
    for override in overrides:
        _apply(document, override)
    if stray := document.keys() - {"reward"}:
        raise ConfigError(f"found settings for {sorted(stray)}, wanted --config for those")
    try:
        return Reward.model_validate(document["reward"])
    except ValidationError as error:
        raise _problems("command line", error, prefix=("reward",)) from error


def bearer(token: SecretStr | str | None) -> dict[str, str]:
    """HTTP headers that show the token; none without one."""
    secret = token.get_secret_value() if isinstance(token, SecretStr) else token
    return {"Authorization": f"Bearer {secret}"} if secret else {}


def dump(run: Run) -> str:
    """The resolved config as JSON, secrets masked; saved with every checkpoint."""
    return run.model_dump_json(indent=2)


def _fill_secrets(shared: dict[str, Any], *, environ: Mapping[str, str], source: str) -> None:
    for field, variable in SECRETS.items():
        if field in shared:
            raise ConfigError(
                f"{source}: shared.{field}: secrets come from the environment ({variable}, or a "
                f"file that {variable}_FILE names), not from a run file"
            )
        shared[field] = secret(variable, environ)


def _apply(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or len(parts) < 2:
        raise ConfigError(
            f"override {override!r}: wanted section.key=value, for example learner.steps=10"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = document
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(f"override {override!r}: {part} is a value, not a section")
    table[parts[-1]] = value


def _none_from_word(value: Any) -> Any:
    """TOML has no null: the word "none" stands for it in the optional fields named here."""
    if isinstance(value, dict):
        optional = {
            *("importance_cap", "dual_clip", "kv_cache_bytes"),
            *("advertise_host", "replica", "gpu_wait_s"),
            *("max_clip_pixels", "max_clip_frames", "redis_user", "redis_ca"),
        }
        return {
            key: None if key in optional and item == "none" else _none_from_word(item)
            for key, item in value.items()
        }
    return value


def _problems(source: str, error: ValidationError, *, prefix: tuple[str, ...] = ()) -> ConfigError:
    found = error.errors(include_url=False)
    explained = "\n".join(f"  {_explain({**problem}, prefix)}" for problem in found)
    return ConfigError(f"{source}: {len(found)} problem(s)\n{explained}")


def _explain(problem: dict[str, Any], prefix: tuple[str, ...]) -> str:
    location = [*prefix, *(str(part) for part in problem["loc"])]
    where = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
        return f"{where}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{where}: missing, and it has no default"
    if problem["type"] == "value_error":
        return str(problem["msg"]).removeprefix("Value error, ")
    return f"{where}: found {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _fields_at(location: list[str]) -> list[str]:
    model: type[BaseModel] = Run
    for part in location:
        field = model.model_fields.get(part)
        inner = field.annotation if field else None
        candidates = [inner, *get_args(inner)]
        model = next(
            (c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model
        )
    return list(model.model_fields)
