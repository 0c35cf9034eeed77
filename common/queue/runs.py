"""Which runs a Redis knows, by the registries that their replicas made: `runs_of(shared)`."""

import re

from common.config import Shared
from common.queue.access import connection_options
from common.queue.connection import Connection

REGISTRY = re.compile(r"tempsamp:([A-Za-z0-9._-]{1,64}):replicas")
KEYS_A_CALL = 1000
MOST_CALLS = 1000
"""A Redis with more than a million keys is not one of runs alone."""


async def runs_of(shared: Shared, *, outage_s: float, knob: str) -> list[str]:
    """Ids of the runs that have, or lately had, a replica.

    Args:
        shared: address and secrets; its run id says nothing here.
        outage_s: how long an unreachable Redis is waited for.
        knob: what the address was named by.

    Raises:
        QueueError: it does not answer.
        ConfigError: it must not be used like this.
    """
    options = connection_options(shared, knob=knob)
    connection = Connection(shared.redis_url, outage_s=outage_s, groups=(), knob=knob, **options)
    found: set[str] = set()
    try:
        cursor = "0"
        for _ in range(MOST_CALLS):
            cursor, keys = await connection.run(
                *("SCAN", cursor, "MATCH", "tempsamp:*:replicas", "COUNT", KEYS_A_CALL)
            )
            found |= {match[1] for key in keys if (match := REGISTRY.fullmatch(key))}
            if str(cursor) == "0":
                break
    finally:
        await connection.close()
    return sorted(found)
