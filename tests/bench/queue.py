"""Speed of the queue: `python -m tests.bench.queue [--json FILE]` → table, JSON.

Claims while others hold many prompts and while many wait; groups of 8 answers of 256 tokens to a
prompt of 1,000 tokens, pushed, read, checked and acknowledged by one process held to one core. The
redis-server is a real one and has another core if there is one.
"""

import asyncio
import json
import os
import platform
import random
import secrets
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from common.messages import Int32Array, PromptRequest, Sample, Scored, ScoredGroup, VersionSpan
from common.queue.broker import Broker, ClaimedPrompt, Limits
from common.queue.stream_entries import to_fields
from jobs.local.redis import LocalRedis, start_redis
from tests.fixtures.wire import prompt_request, scored_group

SETTINGS = ((0, 400), (128, 400), (1_024, 400), (10_000, 400), (0, 100_000), (10_000, 100_000))
"""Live claims of other replicas, prompts that wait."""
CLAIMS = 300
ROUNDS, GROUPS = 5, 400
PROMPT_TOKENS, ANSWERS, ANSWER_TOKENS = 1_000, 8, 256
LEASE_S = 600.0


@dataclass(frozen=True)
class Claiming:
    """Latencies of one replica's claims, in milliseconds; each claimed prompt is then finished."""

    live_claims: int
    waiting: int
    p50_ms: float
    p99_ms: float
    sweep_ms: float
    """One sweep over all of it, which one replica does every two seconds for all."""


@dataclass(frozen=True)
class Result:
    """What one run found; rates in groups per second, medians over rounds."""

    machine: str
    load_average: float
    claims: list[Claiming]
    group_kb: float
    dump_ms: float
    validate_ms: float
    push_read_acknowledge_per_s: float
    slowest_round_per_s: float
    per_client_cpu_second: float
    """The same in processor time of the client: what a busy machine does not change."""


def group(tokens: random.Random) -> ScoredGroup:
    """As a replica makes it."""

    def sample() -> Sample:
        return Sample(
            token_ids=tuple(tokens.randrange(150_000) for _ in range(ANSWER_TOKENS)),
            logprobs=tuple(-3 * tokens.random() for _ in range(ANSWER_TOKENS)),
            version_spans=(VersionSpan(version=3, start=0, end=ANSWER_TOKENS),),
            finish_reason="stop",
            provenance="policy",
        )

    verdict = Scored(reward=0.5, parts={"iou": 0.5, "format": 1.0})
    return scored_group("p1").model_copy(
        update={
            "samples": tuple(sample() for _ in range(ANSWERS)),
            "verdicts": (verdict,) * ANSWERS,
            "prompt_token_ids": Int32Array(tokens.randrange(150_000) for _ in range(PROMPT_TOKENS)),
        }
    )


async def fill(broker: Broker, first: int, count: int, request: PromptRequest) -> None:
    """Feed many prompts without waiting for each."""
    for start in range(first, first + count, 2_000):
        numbers = range(start, min(start + 2_000, first + count))
        await broker._connection.transaction(
            *(
                ("XADD", broker._prompts, f"{number}-0", *to_fields(f"p{number}", request))
                for number in numbers
            )
        )


async def hold(broker: Broker, count: int) -> None:
    """Let other replicas claim."""
    while count > 0:
        command = ("XREADGROUP", "GROUP", "rollout", "other-1", "COUNT", min(count, 2_000))
        await broker._connection.run(*command, "STREAMS", broker._prompts, ">")
        count -= 2_000


async def claims(server: LocalRedis, password: str, live: int, waiting: int) -> Claiming:
    """One setting, in a run of its own."""
    broker = Broker(server.url, run_id=secrets.token_hex(4), password=password)
    await broker.wait_ready()
    await fill(broker, 1, live + waiting, prompt_request(1))
    await hold(broker, live)
    took = []
    for _ in range(CLAIMS):
        started = time.perf_counter()
        claim = await broker.claim_prompt("me-1", lease_s=LEASE_S, block_s=0.1)
        took.append(1e3 * (time.perf_counter() - started))
        assert claim is not None
        await broker._connection.run("XACK", broker._prompts, "rollout", claim.entry_id)
    started = time.perf_counter()
    await broker.sweep("me-1", lease_s=LEASE_S, period_s=0.001, limits=Limits())
    sweep_ms = 1e3 * (time.perf_counter() - started)
    await broker.reset_run()
    await broker.close()
    took.sort()
    return Claiming(live, waiting, statistics.median(took), took[int(0.99 * CLAIMS)], sweep_ms)


async def round_of_groups(
    server: LocalRedis, password: str, made: ScoredGroup
) -> tuple[float, float]:
    """Seconds and processor seconds of this process for `GROUPS` groups, there and back."""
    run_id = secrets.token_hex(4)
    replica, learner = (Broker(server.url, run_id=run_id, password=password) for _ in range(2))
    await replica.wait_ready()
    await replica.feed_prompt(prompt_request(1))
    claim = await replica.claim_prompt("me-1", lease_s=LEASE_S, block_s=0.1)
    assert claim is not None

    started, cpu_started = time.perf_counter(), time.process_time()
    await asyncio.gather(
        *(push(replica, claim, made, GROUPS // 8) for _ in range(8)), read(learner, GROUPS)
    )
    took = time.perf_counter() - started, time.process_time() - cpu_started
    for each in (replica, learner):
        await each.close()
    return took


async def push(broker: Broker, claim: ClaimedPrompt, made: ScoredGroup, count: int) -> None:
    for _ in range(count):
        await broker.push_group(claim, made)


async def read(broker: Broker, count: int) -> None:
    while count > 0:
        found = await broker.read_groups(64, block_s=0.5)
        await broker.acknowledge_groups([entry_id for entry_id, _ in found])
        count -= len(found)


def fastest_ms(call: object, times: int = 200) -> float:
    """Processor time of one call, the fastest of five rounds."""
    rounds = []
    for _ in range(5):
        started = time.process_time()
        for _ in range(times):
            call()  # type: ignore[operator]
        rounds.append((time.process_time() - started) / times)
    return 1e3 * min(rounds)


def hold_to_one_core(server: LocalRedis) -> None:
    """This process on the first core, Redis on the last."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(server.process.pid, {cores[-1]})
    os.sched_setaffinity(0, {cores[0]})


def measure() -> Result:
    """Everything, on a Redis of its own."""
    load, password = os.getloadavg()[0], secrets.token_hex(8)
    made = group(random.Random(0))
    body = to_fields("p1", made)[-1]
    with tempfile.TemporaryDirectory() as folder:
        server = start_redis(Path(folder), password)
        try:
            hold_to_one_core(server)
            found = [asyncio.run(claims(server, password, *setting)) for setting in SETTINGS]
            rounds = [asyncio.run(round_of_groups(server, password, made)) for _ in range(ROUNDS)]
        finally:
            server.stop()
    rates = [GROUPS / wall for wall, _ in rounds]
    return Result(
        machine=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        load_average=round(load, 2),
        claims=found,
        group_kb=len(body) / 1e3,
        dump_ms=fastest_ms(lambda: to_fields("p1", made)),
        validate_ms=fastest_ms(lambda: ScoredGroup.model_validate_json(body)),
        push_read_acknowledge_per_s=statistics.median(rates),
        slowest_round_per_s=min(rates),
        per_client_cpu_second=statistics.median(GROUPS / cpu for _, cpu in rounds),
    )


def show(result: Result) -> None:
    """The tables."""
    console = Console()
    table = Table("live claims", "waiting", "claim p50 ms", "p99 ms", "sweep ms")
    for item in result.claims:
        times = (f"{value:.2f}" for value in (item.p50_ms, item.p99_ms, item.sweep_ms))
        table.add_row(f"{item.live_claims:,}", f"{item.waiting:,}", *times)
    console.print(table)
    console.print(
        f"group of {result.group_kb:.0f} kB: dump {result.dump_ms:.2f} ms, validate "
        f"{result.validate_ms:.2f} ms; push + read + acknowledge "
        f"{result.push_read_acknowledge_per_s:,.0f} groups/s (slowest round "
        f"{result.slowest_round_per_s:,.0f}), {result.per_client_cpu_second:,.0f} a CPU second of "
        f"the client; load {result.load_average}"
    )


def main(json_file: Annotated[Path | None, typer.Option("--json")] = None) -> None:
    """Measure and print; with --json also write."""
    result = measure()
    show(result)
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
