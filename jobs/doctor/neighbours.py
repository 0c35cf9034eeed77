"""The services beside the engines: Redis, the reward service.

    Run -> findings

Both are asked once, as a run would ask them; nothing is changed in them.
"""

import asyncio
import time
from collections.abc import Iterator

from common.config import Run
from common.errors import ConfigError, QueueError, RewardError
from common.messages import SpansTarget
from common.queue.broker import ServerFacts
from common.queue.connection import OLDEST_SERVER
from common.rest.reward_api import ScoreItem, ScoreRequest
from common.rest.reward_client import RewardClient
from jobs.doctor.finding import Finding, Level, one_line
from jobs.fleet.services import opened
from jobs.local.terminal import took

SLOW_S = 0.02
"""Of a call to Redis; a claim and a push of a group are a few each."""
CLOCK_S = 5.0
"""Leases and records of a run are compared across machines to the second."""
REWARD_TIMEOUT_S = 5.0
TRUTH = SpansTarget(spans=((2.0, 8.0),))
ANSWERS = ("<answer>2.0 to 8.0</answer>", "<answer>2.0 to 5.0</answer>", "no idea")
IOUS = (1.0, 0.5, 0.0)
"""Of those answers."""


def redis(run: Run) -> Iterator[Finding]:
    """Reachable, ours alone, and keeps what it is told."""
    try:
        facts = asyncio.run(_describe(run))
    except (ConfigError, QueueError) as error:
        cure = "start it, or set shared.redis_url (and TEMPSAMP_REDIS_PASSWORD)"
        yield Finding("redis", "answers", "fail", one_line(str(error)), cure)
        return
    yield from redis_findings(facts, has_password=run.shared.redis_password is not None)
    yield clock(facts.clock_s, now_s=time.time(), whose="Redis")


def redis_findings(facts: ServerFacts, *, has_password: bool) -> Iterator[Finding]:
    """Judge what a Redis says of itself."""
    oldest = ".".join(map(str, OLDEST_SERVER))
    new_enough = tuple(map(int, facts.version.split(".")[:2])) >= OLDEST_SERVER
    cure = f"run Redis {oldest} or later"
    yield _judged("version", new_enough, "fail", facts.version, f", wanted {oldest}", cure)
    cure = "set `appendonly yes`: without it a restart loses what is in flight"
    kept = "on" if facts.keeps_aof else "off"
    yield _judged("append-only file", facts.keeps_aof, "warn", kept, ", wanted on", cure)
    keeps = facts.max_memory_bytes == 0 or facts.eviction == "noeviction"
    cure = "set `maxmemory-policy noeviction`: prompts and groups must not be evicted"
    yield _judged("eviction", keeps, "fail", facts.eviction, ", wanted noeviction", cure)
    cure = "set TEMPSAMP_REDIS_PASSWORD there and here: who writes to it steers the run"
    given = "set" if has_password else "none"
    yield _judged("password", has_password, "warn", given, "", cure)
    quick = facts.round_trip_s <= SLOW_S
    cure = "bring Redis nearer to learner and replicas, or give it a core of its own"
    found, most = f"{took(facts.round_trip_s)} a call", f", wanted {took(SLOW_S)} at most"
    yield _judged("latency", quick, "warn", found, most, cure)


def clock(theirs_s: float, *, now_s: float, whose: str) -> Finding:
    """Compare a wall clock with ours."""
    apart_s = theirs_s - now_s
    found = f"{whose} is {abs(apart_s):.1f} s {'ahead' if apart_s > 0 else 'behind'}"
    if abs(apart_s) <= CLOCK_S:
        return Finding("clocks", whose, "ok", found)
    cure = "let both machines keep time (chrony, systemd-timesyncd)"
    return Finding("clocks", whose, "warn", f"{found}, wanted {CLOCK_S:.0f} s at most", cure)


def reward(run: Run) -> Iterator[Finding]:
    """Reachable with our token, and scores known answers as they deserve."""
    item = ScoreItem(task="temporal_grounding", target=TRUTH, responses=ANSWERS)
    request = ScoreRequest(items=(item,), parser=run.shared.scoring.parser, format_weight=0.0)
    url = run.shared.reward_url
    try:
        with RewardClient(url, run.shared.tokens.of("score"), REWARD_TIMEOUT_S) as client:
            answer = client.score(request)
    except RewardError as error:
        cure = (
            "start it (`tempsamp reward serve`), or set shared.reward_url, and the same "
            "TEMPSAMP_TOKEN (or TEMPSAMP_SCORE_TOKEN) there and here"
        )
        yield Finding("reward", "answers", "fail", one_line(str(error)), cure)
        return
    rewards = [getattr(verdict, "reward", None) for verdict in answer.items[0].verdicts]
    yield reward_finding(rewards, url=url)


def reward_finding(rewards: list[float | None], *, url: str) -> Finding:
    """Judge the rewards of `ANSWERS`."""
    right = len(rewards) == len(IOUS) and all(
        found is not None and abs(found - wanted) < 1e-6
        for found, wanted in zip(rewards, IOUS, strict=True)
    )
    if right:
        return Finding("reward", "answers", "ok", f"{url}; three known answers scored right")
    found = f"rewards {rewards} for answers of IoU {list(IOUS)} at {url}"
    cure = "look at its version and its installed scorers (GET /v1/scorers)"
    return Finding("reward", "answers", "fail", found, cure)


async def _describe(run: Run) -> ServerFacts:
    async with opened(run) as broker:
        return await broker.describe()


def _judged(name: str, good: bool, otherwise: Level, found: str, wanted: str, cure: str) -> Finding:
    if good:
        return Finding("redis", name, "ok", found)
    return Finding("redis", name, otherwise, f"{found}{wanted}", cure)
