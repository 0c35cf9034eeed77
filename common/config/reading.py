"""A run file → `Run`, or one message for everything that is wrong with it."""

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails

from common.config.curriculum import check_phases
from common.config.fields import Section
from common.config.learner import Learner
from common.config.preset import with_preset
from common.config.services import Reward, Rollout
from common.config.shared import Shared
from common.config.truncation import refuse_inexact
from common.errors import ConfigError
from common.secrets import REDIS_PASSWORD, ROLES, TOKEN, TOKEN_OF, secret


class Run(Section):
    """A whole run file."""

    shared: Shared
    rollout: Rollout = Rollout()
    reward: Reward = Reward()
    learner: Learner

    @model_validator(mode="before")
    @classmethod
    def _stands_on_its_preset(cls, found: Any) -> Any:
        return with_preset(found) if isinstance(found, dict) else found

    @model_validator(mode="after")
    def _sampling_fits_importance_sampling(self) -> Self:
        sampling = self.shared.sampling
        refuse_inexact(sampling, rollout=self.rollout, correction=self.learner.loss.correction)
        if sampling.temperature != 1.0:
            raise ValueError(
                f"shared.sampling.temperature: found {sampling.temperature}, wanted 1.0: "
                "log-probabilities are those of the raw policy"
            )
        return self

    @model_validator(mode="after")
    def _phases_fit(self) -> Self:
        learner = self.learner
        validates = learner.validation.rows is not None
        check_phases(learner.phases, shared=self.shared, validates=validates)
        return self

    @model_validator(mode="after")
    def _anchor_has_advantages_to_multiply(self) -> Self:
        strategies = {phase.strategy or self.shared.strategy for phase in self.learner.phases}
        is_anchored = "anchor" in (strategies or {self.shared.strategy})
        size, floor = self.shared.group_size, self.learner.advantage.anchor_floor
        if is_anchored and size == 2 and floor == 0:
            raise ValueError(
                "shared.group_size: found 2 with strategy anchor, wanted 3 or more, or "
                "learner.advantage.anchor_floor above 0: one policy answer has advantage 0 among "
                "itself, and the true answer gets a multiple of that"
            )
        return self

    @model_validator(mode="after")
    def _cuda_computes_in_bfloat16(self) -> Self:
        learner, dtype = self.learner, self.shared.dtype
        if learner.device == "cuda" and dtype == "float32" and not learner.allow_float32_on_cuda:
            raise ValueError(
                "shared.dtype: found 'float32' while learner.device is 'cuda', wanted 'bfloat16': "
                "in float32 no fused attention kernel runs and scores of all pairs are held (33 GB "
                "a layer at 16k tokens); for small sizes set learner.allow_float32_on_cuda = true"
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
            *("dual_clip", "kv_cache_bytes"),
            *("advertise_host", "replica", "gpu_wait_s"),
            *("max_clip_pixels", "max_clip_frames", "redis_user", "redis_ca"),
            "lora",
            "max_tokens_per_rank",
        }
        return {
            key: None if key in optional and item == "none" else _none_from_word(item)
            for key, item in value.items()
        }
    return value


def _problems(source: str, error: ValidationError, *, prefix: tuple[str, ...] = ()) -> ConfigError:
    by_knob: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for problem in error.errors(include_url=False):
        by_knob.setdefault(_knob((*prefix, *problem["loc"])), []).append(problem)
    explained = [_explain(knob, problems) for knob, problems in by_knob.items()]
    if len(explained) == 1:
        return ConfigError(f"{source}: {explained[0]}")
    return ConfigError("\n  ".join([f"{source}: {len(explained)} problems", *explained]))


def _knob(location: tuple[int | str, ...]) -> tuple[str, ...]:
    """Without what pydantic appends for each member of a union, as in `int | Literal["all"]`."""
    knob: list[str] = []
    section: type[BaseModel] | None = Run
    for part in location:
        if isinstance(part, str):
            if section is None:
                break
            section = _section_at(section, part)
        knob.append(str(part))
    return tuple(knob)


def _explain(location: tuple[str, ...], problems: Sequence[ErrorDetails]) -> str:
    """One line; of a value that is no member of a union there is a problem for each."""
    where, problem = ".".join(location), problems[0]
    if problem["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
        return f"{where}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{where}: missing, and it has no default"
    if problem["type"] == "value_error":
        return str(problem["msg"]).removeprefix("Value error, ")
    wanted = ", or ".join(each["msg"][0].lower() + each["msg"][1:] for each in problems)
    return f"{where}: found {problem['input']!r}: {wanted}"


def _fields_at(location: Sequence[str]) -> list[str]:
    model: type[BaseModel] = Run
    for part in location:
        model = _section_at(model, part) or model
    return list(model.model_fields)


def _section_at(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """What a field holds, if that is a table or several; None for plain values."""
    field = model.model_fields.get(name)
    inner = field.annotation if field else None
    candidates = [inner, *get_args(inner)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
