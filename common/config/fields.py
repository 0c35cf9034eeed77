"""What the sections of a run file are made of: bounded numbers, hosts, named choices."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from common.messages import MAX_INT

LONGEST_S = 1e9
"""31 years. Timers of the standard library raise from about 1e10 s on, instead of waiting."""

Positive = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, le=LONGEST_S)]
PositiveInt = Annotated[int, Field(ge=1, le=MAX_INT)]
Count = Annotated[int, Field(ge=0, le=MAX_INT)]
# What the reward service takes (`common.rest.reward_api`).
FormatWeight = Annotated[float, Field(ge=0, le=100)]
"""Of the format reward."""
Threshold = Annotated[float, Field(gt=0, lt=1)]
"""tau of the non-linear shaping (paper eq. 4)."""
Alpha1 = Annotated[float, Field(ge=0, le=10)]
"""Slope above tau at tau."""
Alpha2 = Annotated[float, Field(ge=0, le=20)]
"""Curvature below tau."""


def _without_brackets(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


Host = Annotated[str, AfterValidator(_without_brackets)]
"""A name, or an address of either family. Brackets may stand around an IPv6 address, as in a URL:
one variable fills both in deploy/compose.node.yml."""


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
