"""What lies in a run's Redis streams: wire type ↔ entry fields.

Used by `common.queue.broker` alone; nothing here talks to Redis.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from common.messages import PACKED, DeadLetter, Message, PromptRequest

M = TypeVar("M", bound=Message)
Fields = dict[str, str]
Command = tuple[Any, ...]


@dataclass(frozen=True)
class ClaimedPrompt:
    """A prompt leased to one replica."""

    request: PromptRequest
    entry_id: str
    replica: str
    attempts: int
    """Replicas that had a try at it, this one included."""
    alone: bool = False
    """Replicas died while they had it: to be worked on with nothing else in work."""


@dataclass(frozen=True)
class Limits:
    """When a prompt is given up; see `rollout.max_attempts` and `rollout.max_deaths`."""

    max_attempts: int = 3
    max_deaths: int = 5


@dataclass(frozen=True)
class Depths:
    """How many messages lie where."""

    prompts_waiting: int
    prompts_claimed: int
    groups_unread: int
    groups_unacknowledged: int
    dead_letters: int


@dataclass(frozen=True)
class ServerFacts:
    """What a Redis says of itself, for who looks whether it suits a run."""

    version: str
    keeps_aof: bool
    """Whether what is in flight survives a restart of it."""
    max_memory_bytes: int
    """0: no limit."""
    eviction: str
    """What it does at that limit; anything but noeviction loses prompts."""
    clock_s: float
    """Its wall clock, seconds since 1970."""
    round_trip_s: float
    """Median of some calls."""


def to_fields(prompt_id: str, message: Message) -> tuple[str, ...]:
    """Names and values for XADD; token ids and log-probabilities are packed."""
    return ("prompt_id", prompt_id, "body", message.model_dump_json(context=PACKED))


def finish(stream: str, group: str, *entry_ids: str) -> tuple[Command, Command]:
    """Acknowledge and delete entries: two commands of one transaction."""
    return ("XACK", stream, group, *entry_ids), ("XDEL", stream, *entry_ids)


def parse(wanted: type[M], fields: Fields) -> M | str:
    """The message, or what is wrong with it."""
    try:
        return wanted.model_validate_json(fields["body"])
    except KeyError:
        return f"no field 'body', found {sorted(fields)}"
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        return f"{error.error_count()} problem(s), first: {where}: {first['msg']}"


def fields_of(flat: Sequence[str]) -> Fields:
    """Names and values as a script returns them."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def dead_letter(fields: Fields, *, error: str, replica: str, attempts: int = 0) -> DeadLetter:
    """What is kept of an entry nobody could use."""
    return DeadLetter(
        prompt_id=fields.get("prompt_id", ""),
        error=error,
        attempts=attempts,
        replica=replica,
        body=fields.get("body", ""),
    )
