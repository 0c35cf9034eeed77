"""Speed of the reward service: `python -m tests.bench.reward [--json FILE]` → table, JSON.

One run measures everything it compares. The server runs as users start it (`tempsamp reward
serve`), held to one core. Rounds in process and over HTTP
alternate, so that both see the same machine. The client sends prepared bytes and does not parse the
answer.
"""

import asyncio
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import httpx
import psutil
import typer
from rich.console import Console
from rich.table import Table

from common.messages import SpansTarget
from common.rest.reward_api import ScoreItem, ScoreRequest, Shaping
from services.reward.scorers.temporal_grounding import bind
from tests.fixtures.adversarial import ADVERSARIAL
from tests.fixtures.servers.reward_server import reward_server

BATCH = 512
GROUP = 8
MEGABYTE = 1_000_000
CONNECTIONS = 16
WARM_UP = 5
TIMEOUT_S = 60.0

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Result:
    """What one run found; times in milliseconds, rates in responses or requests per second."""

    machine: str
    load_average: float
    """Of the minute before: other work on the machine shows in latencies first."""
    in_process_responses_per_s: float
    http_responses_per_s: float
    http_over_in_process: float
    """Wall time of a batch of 512 over HTTP, divided by the pure scorer's for the same batch."""
    http_over_in_process_cpu: float
    """The same in processor time of the server: what a busy machine does not change."""
    single_requests_per_s: float
    single_p50_ms: float
    single_p99_ms: float
    two_workers_over_one: float
    """Throughput of batches from eight connections, two workers divided by one."""
    worst_megabyte_ms: float
    """Slowest adversarial response of a megabyte, in process, over all parsers' default."""
    worst_megabyte: str


def batch_request(seed: int = 0) -> ScoreRequest:
    """512 responses in groups of 8: tagged, with a thought, in prose, clock times, none."""
    rng = random.Random(seed)
    items = tuple(
        ScoreItem(
            task="temporal_grounding",
            target=SpansTarget(spans=((7.0, 11.0),)),
            duration_s=100.0,
            responses=tuple(_response(rng) for _ in range(GROUP)),
        )
        for _ in range(BATCH // GROUP)
    )
    return ScoreRequest(items=items, shaping=Shaping(kind="nonlinear"))


def _response(rng: random.Random) -> str:
    start = rng.uniform(0, 50)
    end = start + rng.uniform(1, 20)
    tagged = f"<answer> {start:.2f} to {end:.2f} </answer>"
    thought = (
        f"The person comes in at about {start:.0f} s and is gone by {end:.0f} s, so that is it."
    )
    return rng.choices(
        [
            tagged,
            f"<think>{thought}</think>{tagged}",
            f"The event happens in {start:.1f} - {end:.1f} seconds.",
            f"<answer>00:{start:02.0f} - 01:{end % 60:02.0f}</answer>",
            "I cannot find it.",
        ],
        weights=[60, 15, 10, 10, 5],
    )[0]


def score_in_process(request: ScoreRequest) -> int:
    """The pure scorer on every response; returns how many there were."""
    count = 0
    for item in request.items:
        score = bind(item, request)
        for response in item.responses:
            score(response)
            count += 1
    return count


def _timed_s(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@dataclass(frozen=True)
class BatchTimes:
    """Seconds a batch of 512: medians over alternating rounds, and processor time."""

    in_process_s: float
    http_s: float
    in_process_cpu_s: float
    http_cpu_s: float


def batches(url: str, *, server: psutil.Process, rounds: int) -> BatchTimes:
    """Score the same batch in process and over HTTP, taking turns."""
    request = batch_request()
    body = request.model_dump_json().encode()
    in_process_s, http_s, in_process_cpu_s = [], [], 0.0
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
        for _ in range(WARM_UP):
            score_in_process(request)
            _post(client, body)
        before_s = _cpu_s(server)
        for _ in range(rounds):
            cpu_s = time.process_time()
            in_process_s.append(_timed_s(lambda: score_in_process(request)))
            in_process_cpu_s += time.process_time() - cpu_s
            http_s.append(_timed_s(lambda: _post(client, body)))
    return BatchTimes(
        in_process_s=statistics.median(in_process_s),
        http_s=statistics.median(http_s),
        in_process_cpu_s=in_process_cpu_s / rounds,
        http_cpu_s=(_cpu_s(server) - before_s) / rounds,
    )


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _post(client: httpx.Client, body: bytes) -> None:
    client.post("/v1/score", content=body).raise_for_status()


async def singles(url: str, *, rate: float, seconds: float) -> list[float]:
    """Latencies in seconds of single-item requests sent on a clock, from when each was due.

    Plain sockets, because an HTTP library at this rate would measure itself.
    """
    address = httpx.URL(url)
    request = batch_request()
    body = ScoreRequest(items=request.items[:1], shaping=request.shaping).model_dump_json().encode()
    head = f"POST /v1/score HTTP/1.1\r\nHost: {address.host}\r\nContent-Length: {len(body)}\r\n\r\n"
    message = head.encode() + body
    idle: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        idle.put_nowait(await asyncio.open_connection(address.host, address.port))
    begin = time.perf_counter() + 0.5

    async def one(index: int) -> float:
        due = begin + index / rate
        await asyncio.sleep(due - time.perf_counter())
        reader, writer = await idle.get()
        writer.write(message)
        await _read_ok(reader)
        idle.put_nowait((reader, writer))
        return time.perf_counter() - due

    latencies_s = await asyncio.gather(*(one(index) for index in range(int(rate * seconds))))
    while not idle.empty():
        idle.get_nowait()[1].close()
    return sorted(latencies_s)


async def _read_ok(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b" 200 " not in head.splitlines()[0]:
        raise RuntimeError(f"found {head!r}, wanted 200")
    await reader.readexactly(int(head.partition(b"content-length:")[2].split()[0]))


def throughput(url: str, *, connections: int, seconds: float) -> float:
    """Batches per second from several connections at once."""
    body = batch_request().model_dump_json().encode()

    def client_loop(_: int) -> int:
        count, until = 0, time.perf_counter() + seconds
        with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
            while time.perf_counter() < until:
                _post(client, body)
                count += 1
        return count

    with ThreadPoolExecutor(connections) as threads:
        return sum(threads.map(client_loop, range(connections))) / seconds


def worst_megabyte() -> tuple[float, str]:
    """Slowest adversarial megabyte in seconds, best of three, and its name."""
    item = ScoreItem(
        task="temporal_grounding", target=SpansTarget(spans=((7.0, 11.0),)), responses=("x",)
    )
    score = bind(item, ScoreRequest(items=(item,), format="strict"))
    times_s = {}
    for name, make in ADVERSARIAL.items():
        text = make(MEGABYTE)
        times_s[name] = min(_timed_s(lambda text=text: score(text)) for _ in range(3))
    slowest = max(times_s, key=lambda name: times_s[name])
    return times_s[slowest], slowest


def machine() -> str:
    """Processor, cores, Python."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def measure(*, rounds: int, rate: float, seconds: float) -> Result:
    """Everything, in about half a minute."""
    cores, load_average = sorted(os.sched_getaffinity(0)), os.getloadavg()[0]
    with reward_server() as server:
        process = psutil.Process(server.process.pid)
        process.cpu_affinity(cores[:1])
        times = batches(server.url, server=process, rounds=rounds)
        latencies_s = asyncio.run(singles(server.url, rate=rate, seconds=seconds))
    rates = []
    for workers in (1, 2):
        with reward_server("--workers", str(workers)) as server:
            throughput(server.url, connections=8, seconds=0.5)
            rates.append(throughput(server.url, connections=8, seconds=3.0))
    worst_s, name = worst_megabyte()
    return Result(
        machine=machine(),
        load_average=load_average,
        in_process_responses_per_s=BATCH / times.in_process_s,
        http_responses_per_s=BATCH / times.http_s,
        http_over_in_process=times.http_s / times.in_process_s,
        http_over_in_process_cpu=times.http_cpu_s / times.in_process_cpu_s,
        single_requests_per_s=rate,
        single_p50_ms=1e3 * latencies_s[len(latencies_s) // 2],
        single_p99_ms=1e3 * latencies_s[int(len(latencies_s) * 0.99)],
        two_workers_over_one=rates[1] / rates[0],
        worst_megabyte_ms=1e3 * worst_s,
        worst_megabyte=name,
    )


def table_of(result: Result) -> Table:
    """The result for the terminal, beside what was wanted."""
    table = Table(title=f"{result.machine}, load {result.load_average:.1f}")
    for heading in ("figure", "found", "wanted"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    rows = [
        ("pure scorer, responses/s", f"{result.in_process_responses_per_s:,.0f}", ""),
        ("HTTP, batches of 512, responses/s", f"{result.http_responses_per_s:,.0f}", ">= 20,000"),
        ("HTTP / pure scorer, time", f"{result.http_over_in_process:.2f}x", "<= 2x"),
        ("  in the server's processor time", f"{result.http_over_in_process_cpu:.2f}x", ""),
        ("single-item requests/s held", f"{result.single_requests_per_s:.0f}", "200"),
        ("  p50 latency", f"{result.single_p50_ms:.1f} ms", ""),
        ("  p99 latency", f"{result.single_p99_ms:.1f} ms", "< 20 ms"),
        ("two workers / one, throughput", f"{result.two_workers_over_one:.2f}x", ""),
        (
            f"worst megabyte ({result.worst_megabyte})",
            f"{result.worst_megabyte_ms:.0f} ms",
            "< 50 ms",
        ),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def main(
    rounds: int = 60,
    rate: float = 200.0,
    seconds: float = 10.0,
    output: Annotated[Path | None, typer.Option("--json", help="Also write it here.")] = None,
) -> None:
    """Measure the service and print ratios."""
    result = measure(rounds=rounds, rate=rate, seconds=seconds)
    Console(width=110).print(table_of(result))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(asdict(result), indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
