"""What all wire types are: frozen, strict about their fields, without NaN and infinity."""

from pydantic import BaseModel, ConfigDict

MAX_INT = 2**63 - 1
"""TOML, msgpack and torch's generators have no larger one."""


class Message(BaseModel):
    """Base of all wire types."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def is_none(value: object) -> bool:
    """For `exclude_if`: a field that says nothing does not travel."""
    return value is None
