"""Walks the table of docs/fleet.md: each event, in each state, on a real replica without vLLM."""

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import get_args

import pytest
import yaml

from common.config import Learner, Rollout
from common.errors import EngineError, GroupError
from common.messages import ReplicaPhase
from common.queue.broker import Broker, Limits
from services.learner.state.lease import HOLD_TTL_S
from services.reward import server as reward_server
from services.rollout import replica as replica_module
from services.rollout import server
from services.rollout.claiming.wellness import FIRST_PAUSE_S, LAST_PAUSE_S
from services.rollout.engine import EngineDownError
from tests.fixtures.pages.documents import ROOT
from tests.fixtures.replicas.replica_world import (
    EPOCH,
    MOMENT_S,
    UNLOADABLE,
    World,
    install,
    short_outage,
)
from tests.fixtures.servers.redis_server import RedisServer

PAGE = (ROOT / "docs/fleet.md").read_text(encoding="utf-8")
IMPOSSIBLE = "-"
STATES = get_args(ReplicaPhase)

Effect = str | Callable[[], Awaitable[str]]
"""What is seen beside the state; found out after it where that takes the end of the replica."""
Event = Callable[[World], Awaitable[Effect]]


def rows(*heading: str) -> list[list[str]]:
    """Of the page's table that begins so."""
    _, _, below = PAGE.partition("| " + " | ".join(heading).lstrip() + " |")
    text, _, _ = below.partition("\n\n")
    _rest, _rule, *lines = text.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def table() -> Mapping[str, Mapping[str, str]]:
    """Event → state → what the page says happens."""
    found = rows("event", *STATES)
    return {event: dict(zip(STATES, cells, strict=True)) for event, *cells in found}


TABLE = table()


async def engine_loads(world: World) -> Effect:
    world.engine.loaded.set_result(None)
    await world.until(lambda: world.replica.status.phase != "starting")
    return ""


async def engine_fails_to_load(world: World) -> Effect:
    world.engine.loaded.set_exception(UNLOADABLE)
    await world.until(lambda: world.replica.failure is not None)
    return ""


async def prompt_comes(world: World) -> Effect:
    before = (await world.broker.depths()).prompts_claimed
    await world.feed(await world.clip("a.mp4"))
    await asyncio.sleep(MOMENT_S)
    claimed = (await world.broker.depths()).prompts_claimed - before
    return "claimed" if claimed else "left"


async def prompt_of_a_new_run_comes(world: World) -> Effect:
    await world.feed(await world.clip("b.mp4"), run_tag="0a1b2c")
    served = world.replica.status.phase == "serving"
    await world.until(lambda: not served or world.replica.status.phase == "syncing")
    await asyncio.sleep(MOMENT_S)
    depths = await world.broker.depths()
    assert (depths.prompts_waiting >= 1, depths.dead_letters) == (True, 0)
    return "left"


async def work_ends(world: World) -> Effect:
    world.engine.may_answer.set()
    await world.until_queues(lambda depths: depths.groups_unread == 1)
    world.close_request()
    return "pushed"


async def weights_arrive(world: World) -> Effect:
    answer = await world.update(9)
    if not answer.is_success:
        return str(answer.status_code)
    assert world.replica.status.version == 9
    return "new version"


async def transfer_breaks(world: World) -> Effect:
    before = world.replica.status.version
    world.engine.transfer_error = GroupError("connection reset by peer")
    answer = await world.update(9)
    assert world.replica.status.version == before
    return str(answer.status_code)


async def weights_are_half_applied(world: World) -> Effect:
    world.engine.apply_error = RuntimeError("half a model")
    answer = await world.update(9)
    assert world.replica.status.version is None
    return str(answer.status_code)


async def later_learner_asks(world: World) -> Effect:
    return str((await world.join(epoch=EPOCH + 1)).status_code)


async def earlier_learner_asks(world: World) -> Effect:
    if world.replica.status.phase == "syncing":
        assert (await world.join(epoch=EPOCH)).is_success
    return str((await world.join(epoch=EPOCH - 1)).status_code)


async def question_is_asked(world: World) -> Effect:
    world.engine.may_answer.set()
    return str((await world.generate()).status_code)


async def readiness_is_asked(world: World) -> Effect:
    return str((await world.client.get("/readyz", params={"serving": "true"})).status_code)


async def sigterm(world: World) -> Effect:
    world.end()
    return ""


async def drain(world: World) -> Effect:
    assert (await world.client.post("/v1/drain")).status_code == 202
    return ""


def handed_back(world: World) -> Effect:
    async def look() -> str:
        depths = await world.broker.depths()
        assert (depths.groups_unread, depths.dead_letters) == (0, 0)
        held = depths.prompts_claimed, depths.prompts_waiting
        return {(0, 1): "handed back", (0, 0): ""}[held]

    return look


async def drain_deadline_passes(world: World) -> Effect:
    assert world.replica._stopped_s is not None
    world.replica._stopped_s -= replica_module.DRAIN_S
    world.close_request()
    return handed_back(world)


async def engine_dies(world: World) -> Effect:
    world.engine.is_dead = True
    if world.replica.status.phase == "broken":
        await asyncio.sleep(MOMENT_S)
        return ""
    await world.until(lambda: world.replica.failure is not None)
    return handed_back(world)


async def engine_dies_without_redis(world: World) -> Effect:
    world.server.stop()
    await asyncio.sleep(MOMENT_S)
    world.engine.is_dead = True
    if world.replica.status.phase == "broken":
        await asyncio.sleep(MOMENT_S)
        return ""
    await world.until(lambda: world.replica.failure is not None)
    assert isinstance(world.replica.failure, EngineDownError)
    return ""


async def prompts_fail(world: World) -> Effect:
    world.engine.generate_error = EngineError("cannot be used")
    world.engine.may_answer.set()
    await world.until(lambda: world.replica.failure is not None)
    return ""


async def lease_ends(world: World) -> Effect:
    taken = None
    while taken is None:
        await world.broker.sweep("other", lease_s=0.001, period_s=0.001, limits=Limits())
        taken = await world.broker.claim_prompt("other", lease_s=60, block_s=0.05)
    world.engine.may_answer.set()
    await world.until_queues(lambda depths: depths.groups_unread == 1)
    return "pushed"


async def redis_restarts(world: World) -> Effect:
    before = await world.broker.depths()
    world.server.stop()
    await asyncio.sleep(MOMENT_S)
    world.server.start_again()
    if not before.prompts_claimed:
        await world.broker.wait_ready(timeout_s=20)
        await asyncio.sleep(MOMENT_S)
        return ""
    world.engine.may_answer.set()
    await world.until_queues(lambda depths: depths.groups_unread == 1)
    return "pushed"


async def redis_stays_away(world: World) -> Effect:
    world.server.stop()
    if world.replica.is_working and world.replica.failure is None:
        await world.until(lambda: world.replica.failure is not None)
    else:
        await asyncio.sleep(MOMENT_S)
    return ""


async def reward_is_away(world: World) -> Effect:
    world.reward.away = True
    if world.replica.status.phase not in ("serving", "draining"):
        return ""
    world.engine.may_answer.set()
    await world.until(lambda: world.trouble)
    assert (world.trouble or "").startswith("answers wait for their verdicts")
    return "answers wait"


async def reward_stays_away(world: World) -> Effect:
    world.reward.away = True
    if world.replica.status.phase not in ("serving", "draining"):
        return ""
    world.engine.may_answer.set()
    await world.until_queues(lambda depths: depths.prompts_waiting == 1)
    await asyncio.sleep(MOMENT_S)
    depths = await world.broker.depths()
    assert (depths.prompts_waiting, depths.dead_letters) == (1, 0)
    assert "rollout.reward_patience_s" in (world.trouble or "")
    return "handed back"


async def videos_are_gone(world: World) -> Effect:
    before = (await world.broker.depths()).prompts_waiting
    clip = await world.clip("b.mp4")
    world.roots.rename(world.roots.with_name("unmounted"))
    await world.feed(clip)
    await asyncio.sleep(MOMENT_S)
    depths = await world.broker.depths()
    assert (depths.prompts_waiting, depths.dead_letters) == (before + 1, 0)
    if world.trouble is None:
        return ""
    assert "are they mounted here?" in world.trouble
    return "claims nothing"


EVENTS: Mapping[str, Event] = {
    "the engine has loaded": engine_loads,
    "the engine cannot be loaded": engine_fails_to_load,
    "a prompt comes": prompt_comes,
    "a prompt of a new run comes": prompt_of_a_new_run_comes,
    "what is in work is done": work_ends,
    "new weights arrive": weights_arrive,
    "a transfer breaks": transfer_breaks,
    "new weights are half applied": weights_are_half_applied,
    "a later learner asks it to join": later_learner_asks,
    "an earlier learner asks it to join": earlier_learner_asks,
    "`/v1/generate` is asked": question_is_asked,
    "`/readyz?serving=true` is asked": readiness_is_asked,
    "SIGTERM": sigterm,
    "`POST /v1/drain`, `tempsamp drain`": drain,
    "20 s have passed since": drain_deadline_passes,
    "the engine dies": engine_dies,
    "the engine dies while Redis is away": engine_dies_without_redis,
    "too many prompts fail in a row": prompts_fail,
    "the lease of a prompt is lost": lease_ends,
    "Redis restarts on its data": redis_restarts,
    "Redis stays away for 120 s": redis_stays_away,
    "the reward service is away": reward_is_away,
    "the reward service stays away for 900 s": reward_stays_away,
    "the videos are gone": videos_are_gone,
}
SETTINGS: Mapping[Event, Mapping[str, object]] = {
    reward_stays_away: {"rollout.reward_patience_s": 0.3},
    prompts_fail: {"rollout.max_failures_in_a_row": 1},
}
OWN_REDIS = (redis_restarts, redis_stays_away, engine_dies_without_redis)
"""Events that others would feel."""


def test_page_and_walk_know_the_same_events() -> None:
    assert list(TABLE) == list(EVENTS)


def test_the_pages_times_are_the_codes() -> None:
    outage = inspect.signature(Broker.__init__).parameters["outage_s"].default
    assert f"Redis stays away for {outage:.0f} s" in TABLE
    assert f"the reward service stays away for {Rollout().reward_patience_s:.0f} s" in TABLE
    assert f"{replica_module.DRAIN_S:.0f} s have passed since" in TABLE
    settings, learner = Rollout(), Learner(rows=Path(), run_dir=Path(), steps=1)
    assert f"else {settings.registry_ttl_s:.0f} s after its last word" in PAGE
    assert f"`rollout.lease_s` ({settings.lease_s:.0f} s)" in PAGE
    assert f"after {settings.reward_patience_s / 60:.0f} min their prompts go back" in PAGE
    without_verdict_min = learner.max_without_verdict_s / 60
    assert f"`learner.max_without_verdict_s` ({without_verdict_min:.0f} min)" in PAGE
    assert f"waits for the lease ({HOLD_TTL_S:.0f} s)" in PAGE
    assert f"after {FIRST_PAUSE_S:.0f} s, 2 s,\n  ... {LAST_PAUSE_S:.0f} s" in PAGE


def test_the_pages_grace_is_that_of_the_manifests() -> None:
    names = {
        "replica": "rollout",
        "reward service": "reward",
        "Redis": "redis",
        "learner": "learner",
    }
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for who, in_compose, in_kubernetes, _needs in rows("", "compose", "Kubernetes", "needs"):
        assert in_compose.replace(" ", "") == compose[names[who]]["stop_grace_period"]
        manifest = (ROOT / f"deploy/k8s/base/{names[who]}.yaml").read_text()
        (grace_s,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", manifest)
        assert in_kubernetes == f"{grace_s} s"
    assert (
        f"{replica_module.DRAIN_S:.0f} s for what is in work, {server.END_S:.0f} s in all" in PAGE
    )
    assert (
        f"{reward_server.DRAIN_S:.0f} s for running requests, {reward_server.END_S:.0f} s in all"
        in PAGE
    )


def test_waits_say_what_the_page_says() -> None:
    sources = [
        path.read_text() for room in ("services", "common") for path in (ROOT / room).rglob("*.py")
    ]
    events = [event for _who, event, _for in rows("who", "event", "waits for")]
    assert len(events) == 11
    for event in events:
        assert any(f'"{event.strip("`")}"' in source for source in sources), event


async def walked(world: World, state: str, event: Event) -> str:
    """What happens, in the page's words."""
    await world.reach(state)
    assert (await world.state()) == state
    effect = await event(world)
    reached = await world.state()
    effect = effect if isinstance(effect, str) else await effect()
    return f"{reached}: {effect}" if effect else reached


@pytest.mark.parametrize("name", EVENTS)
async def test_an_event_does_what_the_page_says(
    name: str,
    redis_server: RedisServer,
    run_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    event, worlds, servers = EVENTS[name], dict[str, World](), list[RedisServer]()
    install(monkeypatch, worlds)
    if event is redis_stays_away:
        short_outage(monkeypatch, 0.5)
    try:
        for state, cell in TABLE[name].items():
            if cell == IMPOSSIBLE:
                continue
            own, folder = f"{run_id}-{state}", tmp_path / state
            server = redis_server
            if event in OWN_REDIS:
                server = RedisServer(folder / "redis")
                servers.append(server)
            worlds[own] = World(server, own, folder, **SETTINGS.get(event, {}))
        states = [run.rpartition("-")[2] for run in worlds]
        found = await asyncio.gather(
            *(
                walked(world, state, event)
                for state, world in zip(states, worlds.values(), strict=True)
            )
        )
    finally:
        for world in worlds.values():
            await world.close()
        for server in servers:
            server.stop()
    said = {state: cell for state, cell in TABLE[name].items() if cell != IMPOSSIBLE}
    assert dict(zip(states, found, strict=True)) == said
