"""`[learner.loss]` and `[learner.advantage]`: what a step minimises."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from common.config.fields import Positive, PositiveInt, Section

Correction = Literal[
    "off", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "icepop"
]


OF_SEQUENCES = ("off", "sequence_truncate", "sequence_mask")
"""Corrections with one weight an answer."""


class Loss(Section):
    """`[learner.loss]`: the policy loss (DESIGN: Learner; SPEC A7)."""

    surrogate: Literal["clip", "cispo"] = "clip"
    """clip: PPO's pessimistic bound; cispo: the ratio, at most 1 + clip_high and without gradient,
    weighs the log-probability, so that no token loses its gradient."""
    clip_low: Positive = 0.2
    clip_high: Positive = 0.28
    """The ratio acts from 1 - clip_low to 1 + clip_high."""
    dual_clip: Annotated[float, Field(gt=1)] | None = 3.0
    """Bound on the ratio where the advantage is negative; None: off."""
    level: Literal["token", "sequence"] = "token"
    """Ratio per token (GRPO/DAPO), or per sequence (GSPO: answers are averaged, not tokens; so is
    the correction then)."""
    normalize: Literal["tokens", "constant"] = "tokens"
    """Denominator: all trained tokens, or a constant per sequence (Dr.GRPO)."""
    constant_tokens: PositiveInt = 256
    """Tokens per sequence that the constant denominator assumes."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL against the frozen start checkpoint; 0 keeps no copy."""
    kl: Literal["k1", "k2", "k3", "k3_weighted"] = "k3"
    """Its estimate: Schulman's k1, k2 or k3, or k3 times the ratio."""
    correction: Correction = "token_truncate"
    """Importance weight w (learner over rollout probability) of policy rows. truncate: at most
    correction_high; mask: 0 above it; icepop: 0 outside correction_low to correction_high, per
    token. sequence: the product over an answer's tokens is the weight of each. off: 1."""
    correction_low: Positive = 0.5
    """icepop: least weight that is trained on."""
    correction_high: Positive = 2.0
    """Largest weight."""

    @model_validator(mode="before")
    @classmethod
    def _has_no_cap(cls, found: Any) -> Any:
        if isinstance(found, dict) and "importance_cap" in found:
            cap = found["importance_cap"]
            instead = f'"token_truncate" with correction_high = {cap}'
            raise ValueError(
                f"learner.loss.importance_cap: found {cap!r}, but that knob is gone, wanted "
                f"learner.loss.correction = {instead if cap not in (None, 'none') else repr('off')}"
            )
        return found

    @model_validator(mode="after")
    def _has_parts_that_fit(self) -> Self:
        if self.level == "sequence" and self.normalize == "constant":
            raise ValueError(
                "learner.loss.normalize: found 'constant', which has no effect with "
                "learner.loss.level = 'sequence' (answers are averaged); wanted 'tokens'"
            )
        if self.level == "sequence" and self.correction not in OF_SEQUENCES:
            raise ValueError(
                f"learner.loss.correction: found {self.correction!r}, wanted one of "
                f"{', '.join(map(repr, OF_SEQUENCES))} with learner.loss.level = 'sequence': "
                "one weight an answer"
            )
        if self.level == "sequence" and self.surrogate == "cispo":
            raise ValueError(
                "learner.loss.surrogate: found 'cispo', wanted 'clip' with learner.loss.level = "
                "'sequence': CISPO weighs tokens"
            )
        if self.normalize == "tokens":
            self._refuse_without_effect(
                "constant_tokens", while_="learner.loss.normalize = 'tokens'"
            )
        if self.surrogate == "cispo":
            why = "learner.loss.surrogate = 'cispo' (it bounds ratios from above alone)"
            self._refuse_without_effect("clip_low", while_=why)
            if self.dual_clip is not None:
                self._refuse_without_effect("dual_clip", while_=why)
        if self.kl_coef == 0:
            self._refuse_without_effect("kl", while_="learner.loss.kl_coef = 0")
        return self

    @model_validator(mode="after")
    def _has_bounds_that_act(self) -> Self:
        if self.correction == "off":
            self._refuse_without_effect("correction_high", while_="learner.loss.correction = 'off'")
        if self.correction != "icepop":
            why = f"learner.loss.correction = {self.correction!r} (icepop alone has a lower bound)"
            self._refuse_without_effect("correction_low", while_=why)
        elif self.correction_low >= self.correction_high:
            raise ValueError(
                f"learner.loss.correction_low: found {self.correction_low}, wanted less than "
                f"learner.loss.correction_high = {self.correction_high}"
            )
        return self

    def _refuse_without_effect(self, name: str, *, while_: str) -> None:
        """A knob that is turned and does nothing is a misunderstanding."""
        found, default = getattr(self, name), type(self).model_fields[name].default
        if found != default:
            raise ValueError(
                f"learner.loss.{name}: found {found!r}, which has no effect with {while_}; "
                f"wanted {default!r}, its default"
            )


class Advantage(Section):
    """`[learner.advantage]`: rewards of a group → advantages (SPEC A7, B1)."""

    scale: Literal["group_std", "batch_std", "none"] = "group_std"
    """What centred rewards are divided by: the std of their group, that of all rewards of the step,
    or nothing (Dr.GRPO)."""
    std_floor: Annotated[float, Field(ge=0)] = 0.0
    """Lower bound on the std, so that near-ties are not blown up."""
    zero_variance: Literal["keep", "skip"] = "keep"
    """Groups whose advantages are all zero. keep: they are forwarded and their tokens count in the
    denominator, as in the public code; skip: they are not, and a step of such groups alone changes
    nothing."""
    truncated: Literal["train", "drop"] = "train"
    """Policy answers that ran out of tokens. drop: no gradient for them (DAPO's overlong
    filtering); their rewards still count in their group's mean and std."""
    downscale: Positive = 0.8
    """strategy downscale: the injected row's reward is this share of the group's largest."""
    anchor: Positive = 1.2
    """strategy anchor: A_GT = anchor x best policy advantage."""
    anchor_floor: Annotated[float, Field(ge=0)] = 0.0
    """strategy anchor: least A_GT; above 0, GT still teaches when all policy rewards tie."""

    @model_validator(mode="before")
    @classmethod
    def _has_no_switch(cls, found: Any) -> Any:
        if isinstance(found, dict) and "scale_by_std" in found:
            switch = found["scale_by_std"]
            instead = {True: "'group_std'", False: "'none'"}.get(switch, "'group_std' or 'none'")
            raise ValueError(
                f"learner.advantage.scale_by_std: found {switch!r}, but that knob is gone, wanted "
                f"learner.advantage.scale = {instead}"
            )
        return found

    @model_validator(mode="after")
    def _has_a_floor_that_acts(self) -> Self:
        if self.scale == "none" and self.std_floor > 0:
            raise ValueError(
                f"learner.advantage.std_floor: found {self.std_floor}, which has no effect with "
                "learner.advantage.scale = 'none'; wanted 0.0, its default"
            )
        return self
