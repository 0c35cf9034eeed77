"""What the sections of a run file are made of: bounded numbers, hosts, named choices."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

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
