"""`[shared]`: what two services must agree on, once."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from common.answers.reading import PARSERS
from common.config.fields import Alpha1, Alpha2, FormatWeight, PositiveInt, Section, Threshold
from common.messages import GroundingReward, Sampling, ShapedPart, Strategy, ThinkInjection
from common.rest.address import checked_url
from common.secrets import REDIS_PASSWORD, TOKEN, TOKEN_OF, Tokens, has_credentials
from common.video.sampling import VideoSampling

MAX_ANSWERS = 16_384
"""vLLM answers no prompt more often (its VLLM_MAX_N_SEQUENCES)."""


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
    def _has_bounds_that_fit(self) -> Self:
        for low, high in (("min_frames", "max_frames"), ("min_pixels", "max_pixels")):
            least, most = getattr(self, low), getattr(self, high)
            if least > most:
                raise ValueError(
                    f"shared.video.{low}: found {least} while shared.video.{high} is {most}, "
                    "wanted no more"
                )
        return self

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
    format_weight: FormatWeight = 0.1
    """Weight of the format reward: 0.1 as the public code, 1.0 as the paper's peers (SPEC B2)."""
    threshold: Threshold = 0.8
    """tau of the non-linear shaping (paper eq. 4)."""
    alpha1: Alpha1 = 0.01
    alpha2: Annotated[Alpha2, Field(gt=0)] = 1.0
    answer_decimals: Annotated[int, Field(ge=0, le=3)] = 2
    """Decimals of the injected answer's times."""
    think_injection: ThinkInjection = "splice"
    """What is injected in think mode (SPEC B3): the bare answer, the answer spliced onto the best
    rollout's thought, or nothing."""
    reward: GroundingReward = "iou"
    """Of time spans: their IoU, or TimeLens2's tiou + twass, which also tells misses apart by how
    far off they are (SPEC C)."""
    beta: Annotated[float, Field(gt=0, le=100)] = 1.0
    """iou+wasserstein: twass = exp(-beta W1 / length of the truth); 1 as TimeLens2's recipe."""
    shaped: ShapedPart = "iou"
    """iou+wasserstein with strategy shaping: whether tiou alone is bent, or the sum."""
    parse_penalty: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Above 0, an answer that cannot be read, or of which a span does not end after its start, gets
    minus this and nothing else (TimeLens2: 1); 0 scores it as a miss."""

    @field_validator("parser")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in PARSERS:
            raise ValueError(
                f"shared.scoring.parser: found {name!r}, wanted one of {', '.join(PARSERS)}"
            )
        return name

    @model_validator(mode="after")
    def _has_parts_that_act(self) -> Self:
        if self.reward == "iou":
            for name in ("beta", "shaped"):
                found, default = getattr(self, name), type(self).model_fields[name].default
                if found != default:
                    raise ValueError(
                        f"shared.scoring.{name}: found {found!r}, which has no effect with "
                        f"shared.scoring.reward = 'iou'; wanted {default!r}, its default, or "
                        "'iou+wasserstein'"
                    )
        return self


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
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """numpy's generators, which vLLM seeds, take no larger one."""
    strategy: Strategy = "shaping"
    group_size: Annotated[int, Field(ge=2, le=MAX_ANSWERS)] = 8
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

    @model_validator(mode="after")
    def _reward_is_a_url(self) -> Self:
        checked_url(self.reward_url, knob="shared.reward_url", example="http://127.0.0.1:8100")
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
