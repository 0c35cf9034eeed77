"""What lies in a run's Redis streams: wire type ↔ entry fields; scripts that have to be atomic.

Used by `common.queue.broker` alone; nothing here talks to Redis.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from common.messages import DeadLetter, Message, PromptRequest

M = TypeVar("M", bound=Message)
Fields = dict[str, str]
Command = tuple[Any, ...]

# Sets idle time and delivery count of a claim, if it still is the caller's.
TOUCH_CLAIM = """
local group, id, consumer, idle_ms, deliveries = unpack(ARGV)
if #redis.call('XPENDING', KEYS[1], group, id, id, 1, consumer) == 0 then return 0 end
redis.call('XCLAIM', KEYS[1], group, consumer, 0, id,
           'IDLE', idle_ms, 'RETRYCOUNT', deliveries, 'JUSTID')
return 1
"""
HOLD_RUN = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return holder end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""
DROP_RUN = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 0
"""


@dataclass(frozen=True)
class ClaimedPrompt:
    """A prompt leased to one replica."""

    request: PromptRequest
    entry_id: str
    replica: str
    attempts: int
    """Deliveries, this one included."""


@dataclass(frozen=True)
class Depths:
    """How many messages lie where."""

    prompts_waiting: int
    prompts_claimed: int
    groups_unread: int
    groups_unacknowledged: int
    dead_letters: int


def to_fields(prompt_id: str, message: Message) -> tuple[str, ...]:
    """Names and values for XADD."""
    return ("prompt_id", prompt_id, "body", message.model_dump_json())


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
        where = ".".join(str(part) for part in first["loc"])
        return f"{error.error_count()} problem(s), first: {where}: {first['msg']}"


def dead_letter(fields: Fields, *, error: str, replica: str, attempts: int = 0) -> DeadLetter:
    """What is kept of an entry nobody could use."""
    return DeadLetter(
        prompt_id=fields.get("prompt_id", ""),
        error=error,
        attempts=attempts,
        replica=replica,
        body=fields.get("body", ""),
    )
