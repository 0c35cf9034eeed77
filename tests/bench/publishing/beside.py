"""What generation and weights cost each other, beside a real replica: vLLM on a CPU.

    measure_large   a transfer of hundreds of MB: tokens a second meanwhile, over undisturbed
    measure_demo    the demo's own model: milliseconds from `publish` to acknowledged, the pause

The replica runs as `tempsamp rollout serve` with the demo's run file; eight requests of eight
answers each are always in work. The large model is the demo's with a random vision tower of 180 M
parameters: the clip's features stay in the engine's cache, so it makes the transfer long and
generation no slower.
"""

import asyncio
import contextlib
import functools
import json
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import torch
from transformers import AutoConfig, Qwen3VLForConditionalGeneration

from common import config
from common.config import Run, bearer
from common.messages import GenerateRequest, GenerateResponse, ReplicaStatus
from common.prompts import chat_messages
from common.queue.broker import Broker
from common.video.frames import sample_clip
from jobs.local.processes import Children, run_arguments
from jobs.local.redis import start_redis
from jobs.toy import clips
from services.learner.model.policy import load_policy
from services.learner.parallel import Ranks
from services.learner.publishing.publisher import Publisher
from tests.bench.spread import Spread

ROOT = Path(__file__).resolve().parents[3]
TINY = ROOT / "deploy/tiny-qwen3vl"
CONFIG = ROOT / "deploy/configs/demo.toml"
READY_TIMEOUT_S = 300.0
IN_WORK = 8
ANSWERS = 8
WARM_UP = 2
SETTLE_S = 0.5
"""Between publishes: caches that a pause dropped are filled again."""
LARGE_TOWER = {"hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16}


@dataclass(frozen=True)
class Large:
    """A long transfer beside generation."""

    num_bytes: int
    transfer_s: Spread
    """From the call of `publish` to the pause."""
    undisturbed_tokens_per_s: Spread
    generation_share: Spread
    """Throughput during a transfer over that in as much time just before it."""
    pause_ms: Spread


@dataclass(frozen=True)
class Demo:
    """The demo's model beside generation."""

    num_bytes: int
    demo_publish_ms: Spread
    pause_ms: Spread
    tokens_per_s: float
    """Generated over the whole time, publishes included."""


@dataclass
class Stream:
    """Requests to a replica, `IN_WORK` at once, from a thread of its own."""

    url: str
    run: Run
    request: GenerateRequest
    made: list[tuple[float, float, int]] = field(default_factory=list)
    """(began, ended, tokens) of each answered request, on the monotonic clock."""
    _stopping: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def going(self) -> Iterator[None]:
        """Runs inside; a request that fails ends it with an error."""
        failed: list[BaseException] = []

        def run() -> None:
            try:
                asyncio.run(self._all())
            except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join()
        if failed:
            raise failed[0]

    def tokens(self, begin: float, end: float) -> float:
        """Tokens of a period: of each request the share of its time that lies within."""
        total = 0.0
        for began, ended, tokens in self.made:
            common_s = min(end, ended) - max(begin, began)
            total += tokens * max(0.0, common_s) / (ended - began)
        return total

    async def _all(self) -> None:
        headers = {"Content-Type": "application/json", **bearer(self.run.shared.token)}
        async with httpx.AsyncClient(timeout=120.0, headers=headers) as client:
            await asyncio.gather(*(self._ask_on(client) for _ in range(IN_WORK)))

    async def _ask_on(self, client: httpx.AsyncClient) -> None:
        body = self.request.model_dump_json()
        while not self._stopping.is_set():
            began = time.monotonic()
            answer = (await client.post(f"{self.url}/v1/generate", content=body)).raise_for_status()
            made = GenerateResponse.model_validate_json(answer.content)
            tokens = sum(len(item.sample.token_ids) for item in made.answers)
            self.made.append((began, time.monotonic(), tokens))


@dataclass
class Beside:
    """A learner's publisher and a replica that generates."""

    publisher: Publisher
    stream: Stream
    version: int = 0

    def publish(self) -> tuple[float, float]:
        """One more version; when it was called and when it was acknowledged, monotonic."""
        self.version += 1
        began = time.monotonic()
        self.publisher.publish(self.version, step=self.version)
        return began, time.monotonic()

    @property
    def figures(self) -> dict[str, float]:
        """Of the last publish."""
        return self.publisher.figures


def measure_large(*, ranks: Ranks, folder: Path, depth: int, repeats: int) -> Large:
    """Alternating: as much undisturbed time as a transfer takes, and a transfer."""
    model = folder / "large"
    write_large_model(model, depth=depth)
    with _beside(model, ranks=ranks, folder=folder, freeze_vision=False) as beside:
        spans = []
        quiet_s = 1.0
        for _ in range(WARM_UP + repeats):
            time.sleep(SETTLE_S)
            quiet_from = time.monotonic()
            time.sleep(quiet_s)
            began, ended = beside.publish()
            paused = ended - beside.figures["learner/pause_ms"] / 1000
            spans.append((quiet_from, began, paused, beside.figures["learner/pause_ms"]))
            quiet_s = paused - began
        time.sleep(SETTLE_S)
        num_bytes = int(beside.figures["learner/transfer_bytes"])
    tokens = beside.stream.tokens
    kept = spans[WARM_UP:]
    quiet = [tokens(q, b) / (b - q) for q, b, _, _ in kept]
    busy = [tokens(b, p) / (p - b) for _, b, p, _ in kept]
    return Large(
        num_bytes=num_bytes,
        transfer_s=Spread.of([p - b for _, b, p, _ in kept]),
        undisturbed_tokens_per_s=Spread.of(quiet),
        generation_share=Spread.of([b / q for b, q in zip(busy, quiet, strict=True)]),
        pause_ms=Spread.of([pause_ms for *_, pause_ms in kept]),
    )


def measure_demo(*, ranks: Ranks, folder: Path, repeats: int) -> Demo:
    """The demo's model with its tower frozen, as the demo trains it."""
    with _beside(TINY, ranks=ranks, folder=folder, freeze_vision=True) as beside:
        times_ms, pauses_ms = [], []
        started = time.monotonic()
        for _ in range(WARM_UP + repeats):
            time.sleep(SETTLE_S)
            began, ended = beside.publish()
            times_ms.append(1000 * (ended - began))
            pauses_ms.append(beside.figures["learner/pause_ms"])
        ended = time.monotonic()
        num_bytes = int(beside.figures["learner/transfer_bytes"])
    return Demo(
        num_bytes=num_bytes,
        demo_publish_ms=Spread.of(times_ms[WARM_UP:]),
        pause_ms=Spread.of(pauses_ms[WARM_UP:]),
        tokens_per_s=beside.stream.tokens(started, ended) / (ended - started),
    )


def write_large_model(folder: Path, *, depth: int) -> None:
    """The demo's checkpoint with a wide random vision tower of so many blocks."""
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    settings = AutoConfig.from_pretrained(TINY)
    for name, value in {**LARGE_TOWER, "depth": depth}.items():
        setattr(settings.vision_config, name, value)
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(settings).save_pretrained(folder)


@contextlib.contextmanager
def _beside(model: Path, *, ranks: Ranks, folder: Path, freeze_vision: bool) -> Iterator[Beside]:
    """Redis, a replica with a model, requests to it, and a publisher."""
    folder = folder / model.name
    environ = {
        "TEMPSAMP_REDIS_PASSWORD": secrets.token_hex(8),
        "TEMPSAMP_TOKEN": secrets.token_hex(8),
        "OMP_NUM_THREADS": "1",
    }
    with contextlib.ExitStack() as owned:
        redis = start_redis(folder / "redis", environ["TEMPSAMP_REDIS_PASSWORD"])
        owned.callback(redis.stop)
        overrides = _overrides(model, redis_url=redis.url, folder=folder)
        run = config.load(CONFIG, overrides=overrides, environ=environ)
        request = _request(run, folder)
        children = owned.enter_context(Children(folder / "logs"))
        command = [sys.executable, "-m", "tempsamp", "rollout", "serve"]
        children.start("rollout", [*command, *run_arguments(CONFIG, overrides)], environ=environ)
        registry = functools.partial(_registry, run, environ["TEMPSAMP_REDIS_PASSWORD"])
        statuses = _wait_for_one(registry, children)
        publisher = Publisher(
            load_policy(model, freeze_vision=freeze_vision),
            shared=run.shared,
            learner=run.learner,
            ranks=ranks,
            replicas=lambda: statuses,
            run_tag="bench",
        )
        owned.callback(publisher.close)
        beside = Beside(publisher, Stream(statuses[0].url, run, request))
        beside.publish()
        owned.enter_context(beside.stream.going())
        yield beside


def _overrides(model: Path, *, redis_url: str, folder: Path) -> list[str]:
    settings: dict[str, object] = {
        "shared.run_id": "bench",
        "shared.model": str(model),
        "shared.video.roots": [str(folder)],
        "shared.redis_url": redis_url,
        "shared.reward_url": "http://127.0.0.1:1",  # no prompt comes through the queue
        "learner.run_dir": str(folder / "run"),
        "learner.rows": str(folder / "rows.jsonl"),
    }
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def _request(run: Run, folder: Path) -> GenerateRequest:
    clips.write_split(folder / "clips", "validation", num_clips=1)
    path = folder / "clips" / clips.clip_path("validation", 0)
    return GenerateRequest(
        clip=sample_clip(path, sampling=clips.SAMPLING),
        messages=chat_messages(clips.PROBLEM.format(query="the red circle is visible")),
        num_samples=ANSWERS,
        sampling=run.shared.sampling,
    )


def _registry(run: Run, password: str) -> list[ReplicaStatus]:
    async def read() -> list[ReplicaStatus]:
        broker = Broker(run.shared.redis_url, run_id=run.shared.run_id, password=password)
        try:
            return await broker.replicas()
        finally:
            await broker.close()

    return asyncio.run(read())


def _wait_for_one(
    registry: "functools.partial[list[ReplicaStatus]]", children: Children
) -> list[ReplicaStatus]:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        children.check()
        if found := registry():
            return found
        time.sleep(0.5)
    raise AssertionError(f"no replica within {READY_TIMEOUT_S} s")
