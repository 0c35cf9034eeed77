"""What HTTP costs an evaluation: `python -m tests.bench.answering [--json FILE]` → table, JSON.

The tiny model answers the same greedy requests, one engine against one and two against two:

    direct      `Engine.generate` from a loop in a process per engine, nothing in between replicas
    `tempsamp rollout serve` from a checkpoint, asked through `jobs.asking.replicas.Fleet`

Both decode every clip with `ClipLoader`, with as many requests in flight in each engine. Engines
are started and warmed before anything is timed. Rounds alternate and each has clips of its own, so
every prompt is new to both sides and their caches are in the same state. The model is so small that
HTTP, JSON and validation show: 2 ms of asker and 1 ms of replica beside 48 ms of decode and engine.
"""

import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Annotated

import httpx
import psutil
import typer
import uvloop
from rich.console import Console
from rich.table import Table

from common import config
from common.errors import EngineError
from common.messages import GenerateRequest, Sampling
from common.video.frames import sample_clip
from common.video.loader import ClipLoader
from jobs.asking.replicas import FLEET_TIMEOUT, Ask, Fleet, connected
from jobs.evaluation.questions import find_questions
from jobs.local.replica import LocalReplica, started
from jobs.toy import clips
from services.rollout.engine import Engine
from tests.bench.reward import machine
from tests.bench.spread import Spread

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "deploy/tiny-qwen3vl"
CONFIG = ROOT / "deploy/configs/demo.toml"
OUTPUT = Path("docs/bench/answering.json")
SIZES = (1, 2)
"""Engines on either side."""
WARM_UP = 2
"""Rounds before the clock counts, by all engines."""
IN_FLIGHT = 16
"""Requests in work at once in each engine: the default of `tempsamp eval`."""
STOP_S = 30.0

Round = tuple[GenerateRequest, ...]


@dataclass(frozen=True)
class Timing:
    """One round on one side."""

    answers_per_s: float
    cpu_ms: float
    """Processor time of one answer, all processes together: other work changes it less."""
    texts: list[str]


@dataclass(frozen=True)
class Result:
    """As many engines on both sides."""

    engines: int
    direct_per_s: Spread
    replicas_per_s: Spread
    ratio: Spread
    """Throughput of replicas over direct, by repeat; higher is better."""
    direct_cpu_ms: Spread
    replicas_cpu_ms: Spread
    same_answers: float
    """Share of requests to which both sides wrote the same text."""


@dataclass(frozen=True)
class Report:
    """What one run found."""

    machine: str
    load_average: float
    """Of the minute before."""
    requests_a_round: int
    in_flight_an_engine: int
    repeats: int
    results: list[Result]


@dataclass
class Direct:
    """Engines in processes of their own; each knows all rounds and is told only which to answer."""

    rounds: Sequence[Round]
    folder: Path
    """Of their logs."""
    pipes: list[Connection] = field(default_factory=list)
    processes: list[SpawnProcess] = field(default_factory=list)

    def start(self, engines: int) -> None:
        """Start to load; `wait_until_ready` waits."""
        context = multiprocessing.get_context("spawn")
        for number in range(engines):
            ours, theirs = context.Pipe()
            process = context.Process(target=drive, args=(theirs, self.rounds, self._log(number)))
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def wait_until_ready(self) -> None:
        """Until all are loaded; raises EngineError with the log of one that ended instead."""
        for number, pipe in enumerate(self.pipes):
            try:
                pipe.recv()
            except EOFError as error:
                log = self._log(number).read_text(errors="replace")
                raise EngineError(f"direct engine {number} ended while loading:\n{log}") from error

    async def answer(self, number: int, *, engines: int) -> list[str]:
        """Texts of one round's answers, in its order.

        Clips go to the engines in turn, whole: the queries of one share its prefix.
        """
        for engine, pipe in enumerate(self.pipes[:engines]):
            pipe.send((number, engine, engines))
        texts: dict[int, str] = {}
        for pipe in self.pipes[:engines]:
            texts |= await asyncio.to_thread(pipe.recv)
        return [texts[place] for place in sorted(texts)]

    def cpu_s(self) -> float:
        """Processor time of everything that takes part, since it was started."""
        return sum(_tree_cpu_s(process.pid) for process in self.processes)

    def _log(self, number: int) -> Path:
        return self.folder / f"direct{number}.log"

    def stop(self) -> None:
        """The end of its pipe ends a process."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(STOP_S)
            if process.pid is not None:  # its engine outlives one that is killed
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Served:
    """Replicas over HTTP."""

    rounds: Sequence[Round]
    replicas: Sequence[LocalReplica]
    clients: Sequence[httpx.AsyncClient]

    async def answer(self, number: int, *, engines: int) -> list[str]:
        """As `Direct.answer`; replicas pull from one queue, as in an evaluation."""
        texts: dict[int, str] = {}

        async def do(place: int, ask: Ask) -> None:
            reply = await ask(self.rounds[number][place])
            texts[place] = reply.answers[0].text

        def give_up(place: int, error: str) -> None:
            raise AssertionError(f"request {place} of round {number}: {error}")

        fleet = Fleet(self.clients[:engines], concurrency=IN_FLIGHT)
        await fleet.work(
            range(len(self.rounds[number])),
            do=do,
            give_up=give_up,
            pile_of=lambda place: place // clips.SHAPES_PER_CLIP,
        )
        return [texts[place] for place in sorted(texts)]

    def cpu_s(self) -> float:
        """Whoever asks takes part."""
        servers = sum(_tree_cpu_s(replica.child.process.pid) for replica in self.replicas)
        return servers + time.process_time()


def drive(pipe: Connection, rounds: Sequence[Round], log: Path) -> None:
    """Main of a process of `Direct`: load an engine, answer parts of rounds until the pipe ends.

    It leads a session, as a replica does: Linux shares a busy processor out by session.
    """
    os.setsid()
    with log.open("ab") as output:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(output.fileno(), stream.fileno())
    uvloop.run(_drive(pipe, rounds))  # as uvicorn runs a replica


async def _drive(pipe: Connection, rounds: Sequence[Round]) -> None:
    run = config.load(
        CONFIG, overrides=[f"shared.model={json.dumps(str(MODEL))}", 'shared.video.roots=["/"]']
    )
    loader = ClipLoader.of(run.shared.video)
    engine = await Engine.start(run.shared, rollout=run.rollout)
    try:
        pipe.send("ready")
        with contextlib.suppress(EOFError):
            while True:
                number, part, parts = await asyncio.to_thread(pipe.recv)
                mine = [
                    (place, request)
                    for place, request in enumerate(rounds[number])
                    if place // clips.SHAPES_PER_CLIP % parts == part
                ]
                pipe.send(await _generate(engine, loader, mine))
    finally:
        engine.shutdown()


async def _generate(
    engine: Engine, loader: ClipLoader, requests: Sequence[tuple[int, GenerateRequest]]
) -> dict[int, str]:
    """Answers by place; `IN_FLIGHT` requests in work, frames loaded as a replica loads them."""
    waiting, texts = iter(requests), {}

    async def work() -> None:
        for place, request in waiting:
            frames = await asyncio.to_thread(loader.load, request.clip)
            made = await engine.generate(
                request.messages,
                clip=request.clip,
                frames=frames,
                num_samples=request.num_samples,
                sampling=request.sampling,
            )
            texts[place] = made.texts[0]

    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(work())
    return texts


def make_rounds(folder: Path, *, count: int, clips_a_round: int) -> list[Round]:
    """Rounds of requests, each about clips of its own; three queries a clip."""
    run = config.load(CONFIG)
    rows = clips.write_split(folder, "train", num_clips=count * clips_a_round)
    asked = find_questions(rows, find=folder.joinpath).asked
    sampling = Sampling(temperature=0.0, max_tokens=run.shared.sampling.max_tokens)
    refs = {
        video: sample_clip(video, sampling=run.shared.video.sampling)
        for video in dict.fromkeys(one.video for one in asked)
    }
    requests = [
        GenerateRequest(
            clip=refs[one.video],
            messages=one.messages("ours", "answer", task="moments"),
            sampling=sampling,
        )
        for one in asked
    ]
    size = len(requests) // count
    return [tuple(requests[start : start + size]) for start in range(0, len(requests), size)]


async def measure(direct: Direct, served: Served, *, repeats: int) -> list[Result]:
    """Every round by both sides, who goes first in turn; one engine each, then two, then one …"""
    for number in range(WARM_UP):
        for side in (direct, served):
            await side.answer(number, engines=max(SIZES))
    timed: dict[int, list[tuple[Timing, Timing]]] = {engines: [] for engines in SIZES}
    for repeat in range(repeats):
        for place, engines in enumerate(SIZES):
            number = WARM_UP + repeat * len(SIZES) + place
            sides = (direct, served) if repeat % 2 == 0 else (served, direct)
            pair = [await _timed(side, number, engines) for side in sides]
            timed[engines].append((pair[repeat % 2], pair[1 - repeat % 2]))
    return [_result(engines, pairs) for engines, pairs in timed.items()]


async def _timed(side: Direct | Served, number: int, engines: int) -> Timing:
    cpu_s, began = side.cpu_s(), time.perf_counter()
    texts = await side.answer(number, engines=engines)
    wall_s, cpu_s = time.perf_counter() - began, side.cpu_s() - cpu_s
    return Timing(answers_per_s=len(texts) / wall_s, cpu_ms=1e3 * cpu_s / len(texts), texts=texts)


def _result(engines: int, pairs: Sequence[tuple[Timing, Timing]]) -> Result:
    direct, served = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    both = [texts for ours, theirs in pairs for texts in zip(ours.texts, theirs.texts, strict=True)]
    return Result(
        engines=engines,
        direct_per_s=Spread.of([timing.answers_per_s for timing in direct]),
        replicas_per_s=Spread.of([timing.answers_per_s for timing in served]),
        ratio=Spread.of([theirs.answers_per_s / ours.answers_per_s for ours, theirs in pairs]),
        direct_cpu_ms=Spread.of([timing.cpu_ms for timing in direct]),
        replicas_cpu_ms=Spread.of([timing.cpu_ms for timing in served]),
        same_answers=sum(one == other for one, other in both) / len(both),
    )


def _tree_cpu_s(pid: int | None) -> float:
    """Processor time of a process and its living descendants."""
    root = psutil.Process(pid)
    tree = [process.cpu_times() for process in (root, *root.children(recursive=True))]
    return float(sum(times.user + times.system for times in tree))


@contextlib.contextmanager
def engines_of(
    rounds: Sequence[Round], folder: Path
) -> Iterator[tuple[Direct, list[LocalReplica]]]:
    """Both sides, loaded; all processes are ended in any case."""
    direct = Direct(rounds, folder)
    with contextlib.ExitStack() as owned:
        owned.callback(direct.stop)
        direct.start(max(SIZES))
        replicas = [
            owned.enter_context(started(MODEL, run_file=CONFIG, folder=folder / f"replica{number}"))
            for number in range(max(SIZES))
        ]
        direct.wait_until_ready()
        for replica in replicas:
            replica.wait_until_ready()
        yield direct, replicas


def measure_all(*, clips_a_round: int, repeats: int) -> Report:
    """Everything; a minute of it is loading."""
    load_average = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_rounds = WARM_UP + repeats * len(SIZES)
        rounds = make_rounds(folder, count=num_rounds, clips_a_round=clips_a_round)

        async def run(direct: Direct, replicas: Sequence[LocalReplica]) -> list[Result]:
            async with contextlib.AsyncExitStack() as owned:
                clients: list[httpx.AsyncClient] = []
                for replica in replicas:
                    opened = connected([replica.url], token=replica.token, patience=FLEET_TIMEOUT)
                    clients += await owned.enter_async_context(opened)
                return await measure(direct, Served(rounds, replicas, clients), repeats=repeats)

        with engines_of(rounds, folder) as (direct, replicas):
            results = asyncio.run(run(direct, replicas))
    return Report(
        machine=machine(),
        load_average=load_average,
        requests_a_round=len(rounds[0]),
        in_flight_an_engine=IN_FLIGHT,
        repeats=repeats,
        results=results,
    )


def table_of(report: Report) -> Table:
    """The report for the terminal, beside what was wanted."""
    table = Table(
        title=f"{report.requests_a_round} requests a round, {report.repeats} rounds, "
        f"{report.in_flight_an_engine} in flight an engine\n"
        f"{report.machine}, load {report.load_average:.1f}"
    )
    headings = "engines,direct answers/s,replicas answers/s,ratio,wanted,CPU ms an answer,same text"
    for heading in headings.split(","):
        table.add_column(heading, justify="right")
    for result in report.results:
        table.add_row(
            str(result.engines),
            result.direct_per_s.text("{:.1f}"),
            result.replicas_per_s.text("{:.1f}"),
            result.ratio.text("{:.2f}"),
            ">= 0.90",
            f"{result.direct_cpu_ms.median:.1f} / {result.replicas_cpu_ms.median:.1f}",
            f"{result.same_answers:.1%}",
        )
    return table


def main(
    clips_a_round: int = 32,
    repeats: int = 5,
    output: Annotated[Path, typer.Option("--json", help="Where the figures go.")] = OUTPUT,
) -> None:
    """Measure both sides and write the figures."""
    report = measure_all(clips_a_round=clips_a_round, repeats=repeats)
    Console(width=130).print(table_of(report))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(asdict(report), indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
