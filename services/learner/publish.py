"""Weights out: gather → buckets → broadcast → a version that every live replica has acknowledged.

All ranks gather every parameter in the same order (a collective); only rank 0 sends, from a thread
that drains its queue whatever happens, so a failing send never stops a gather. Membership is a
generation: rank 0 reads the registry, live replicas join a new group, and whoever misses a deadline
is dropped and the transfer repeated with the rest. A dead replica costs seconds, never the run.

Neighbours: `train` calls `publish` after each step, and while it waits when `has_strangers`; the
replicas' /v1/weights/* answer. B = bytes of one bucket.
"""

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import torch

from common.config import Learner, Shared, bearer
from common.errors import WeightError
from common.messages import (
    JoinWeightGroup,
    Message,
    ReplicaStatus,
    UpdateWeights,
    WeightVersion,
)
from common.weight_group import Layout, WeightGroup, describe, open_store, send
from services.learner.parallel import Ranks, whole_weights
from services.learner.policy import Policy

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 2.0
"""A replica that does not even answer this fast is not asked to join."""
POLL_S = 0.2
HTTP_MARGIN_S = 10.0
"""An HTTP answer may come this much later than the collective's own deadline."""


@dataclass(frozen=True)
class Generation:
    """A weight group and the replicas in it."""

    number: int
    group: WeightGroup
    members: tuple[ReplicaStatus, ...]

    @property
    def names(self) -> set[str]:
        """Names of the members; a restarted replica has another one."""
        return {member.replica for member in self.members}


class Publisher:
    """Brings policy versions to the replicas. Construct and call on every rank."""

    def __init__(
        self,
        policy: Policy,
        *,
        shared: Shared,
        learner: Learner,
        ranks: Ranks,
        replicas: Callable[[], Sequence[ReplicaStatus]],
        run_tag: str,
    ) -> None:
        """Nothing is sent yet.

        Args:
            policy: whose weights are sent.
            shared: of the run.
            learner: of the run.
            ranks: all of the learner's.
            replicas: reads the registry; only rank 0 calls it.
            run_tag: tells weights of equal version apart; only rank 0's matters.
        """
        self._policy = policy
        self._learner = learner
        self._ranks = ranks
        self._replicas = replicas
        self._run_tag = run_tag
        self._wire_dtype: torch.dtype = getattr(torch, shared.dtype)
        slices = [
            describe(name, shape=parameter.shape, dtype=self._wire_dtype)
            for name, parameter in policy.named_weights()
        ]
        self._layout = Layout.of(slices, bucket_bytes=learner.bucket_bytes)
        self._generation: Generation | None = None
        self._numbers = 0
        self._headers = bearer(shared.token)

    def publish(self, version: int, *, step: int) -> WeightVersion:
        """Return once at least one replica, and every one that is left, serves `version`.

        Raises:
            WeightError: fewer than `min_replicas` came within `wait_for_replicas_s`.
        """
        while True:
            sent = self._attempt(version, step=step)
            outcome = self._ranks.broadcast_json(sent.model_dump() if sent else None)
            if outcome is not None:
                return WeightVersion.model_validate(outcome)

    @property
    def has_strangers(self) -> bool:
        """Rank 0: whether a live replica still lacks the weights the others serve."""
        members = self._generation.names if self._generation else set()
        strangers = (replica for replica in self._live() if replica.replica not in members)
        return any(not _is_gone(replica.url) for replica in strangers)

    def member_urls(self) -> list[str]:
        """Rank 0: replicas that acknowledged the last version."""
        return [member.url for member in self._generation.members] if self._generation else []

    def close(self) -> None:
        """Leave the weight group."""
        if self._generation is not None:
            self._generation.group.close()
            self._generation = None

    def _attempt(self, version: int, *, step: int) -> WeightVersion | None:
        """One transfer; None when it has to be repeated. Every rank runs the gathers to the end."""
        if not self._ranks.is_main:
            for _ in self._gathered():
                pass
            return None
        generation = self._current_generation()
        started = time.monotonic()
        request = UpdateWeights(
            generation=generation.number,
            version=version,
            run_tag=self._run_tag,
            slices=self._layout.slices,
            bucket_bytes=self._layout.bucket_bytes,
        )
        with ThreadPoolExecutor(len(generation.members) + 1) as threads:
            answers = {
                member.url: threads.submit(self._post, member.url, "update", request)
                for member in generation.members
            }
            digest, num_bytes = self._send(generation.group, threads)
            serving = [url for url, answer in answers.items() if _succeeded(url, answer)]
        if digest is None or len(serving) < len(generation.members):
            logger.warning(
                "transfer incomplete, building a new group",
                extra={"policy_version": version, "generation": generation.number},
            )
            self.close()
            return None
        logger.info(
            "published",
            extra={
                "policy_version": version,
                "step": step,
                "replicas": len(serving),
                "digest": digest,
                "publish_s": round(time.monotonic() - started, 4),
            },
        )
        return WeightVersion(version=version, step=step, digest=digest, num_bytes=num_bytes)

    # --- the stream ---------------------------------------------------------------------------

    def _send(self, group: WeightGroup, threads: ThreadPoolExecutor) -> tuple[str | None, int]:
        """Gather here, broadcast in a thread. None as digest: the broadcast failed."""
        buckets: queue.Queue[torch.Tensor | None] = queue.Queue(maxsize=2)
        drained = threading.Event()

        def take() -> Iterator[torch.Tensor]:
            while (bucket_B := buckets.get()) is not None:
                yield bucket_B
            drained.set()

        def broadcast() -> tuple[str, int]:
            stream = take()
            try:
                return send(group, buckets=stream, device=self._learner.device)
            finally:
                # The gatherer must never block on a sender that gave up.
                while not drained.is_set():
                    next(stream, None)

        sending = threads.submit(broadcast)
        for bucket_B in self._buckets():
            buckets.put(bucket_B)
        buckets.put(None)
        try:
            return sending.result()
        except WeightError as error:
            logger.warning("weight broadcast failed", extra={"error": str(error)})
            return None, 0

    def _buckets(self) -> Iterator[torch.Tensor]:
        """The byte stream of `Layout`, cut into fresh host buckets ([B] uint8)."""
        gathered = self._gathered()
        pending = _Cursor(gathered, self._layout)
        for start, end in self._layout.buckets:
            yield pending.read(start, end)

    def _gathered(self) -> Iterator[torch.Tensor]:
        """What the wire carries, on rank 0; a collective on every rank."""
        weights = whole_weights(self._policy, dtype=self._wire_dtype, ranks=self._ranks)
        return (tensor for _, tensor in weights if tensor is not None)

    # --- membership ---------------------------------------------------------------------------

    def _current_generation(self) -> Generation:
        """The group of all live replicas, rebuilt when one came or went.

        Raises:
            WeightError: too few replicas for too long.
        """
        deadline = time.monotonic() + self._learner.wait_for_replicas_s
        while True:
            live = [replica for replica in self._live() if not _is_gone(replica.url)]
            names = {replica.replica for replica in live}
            if self._generation is not None and self._generation.names == names:
                return self._generation
            self.close()
            if len(live) >= self._learner.min_replicas:
                self._generation = self._form(live)
                if self._generation is not None:
                    return self._generation
            if time.monotonic() > deadline:
                raise WeightError(
                    f"found {len(live)} live replica(s) for {self._learner.wait_for_replicas_s} s, "
                    f"wanted {self._learner.min_replicas} (learner.min_replicas, "
                    "learner.wait_for_replicas_s): start rollout replicas"
                )
            time.sleep(POLL_S)

    def _live(self) -> list[ReplicaStatus]:
        """As the registry has it: one that crashed is listed until its entry expires."""
        return [replica for replica in self._replicas() if replica.phase != "draining"]

    def _form(self, candidates: Sequence[ReplicaStatus]) -> Generation | None:
        """A new generation of those who answer; None when somebody failed to join."""
        members = [replica for replica in candidates if self._answers(replica.url)]
        if len(members) < self._learner.min_replicas:
            return None
        self._numbers += 1
        timeout_s = self._learner.publish_timeout_s
        store = open_store(self._learner.host, timeout_s=timeout_s)
        world_size = 1 + sum(member.num_workers for member in members)
        with ThreadPoolExecutor(len(members)) as threads:
            first_rank, joins = 1, {}
            for member in members:
                request = JoinWeightGroup(
                    generation=self._numbers,
                    host=self._learner.host,
                    port=store.port,
                    first_rank=first_rank,
                    world_size=world_size,
                    timeout_s=timeout_s,
                )
                joins[member.url] = threads.submit(self._post, member.url, "join", request)
                first_rank += member.num_workers
            try:
                group = WeightGroup.join(
                    store,
                    rank=0,
                    world_size=world_size,
                    timeout_s=timeout_s,
                    device=self._learner.device,
                )
            except WeightError as error:
                logger.warning("no weight group", extra={"error": str(error)})
                return None
            joined = [_succeeded(url, answer) for url, answer in joins.items()]
        if not all(joined):
            group.close()
            return None
        logger.info(
            "weight group formed",
            extra={
                "generation": self._numbers,
                "world_size": world_size,
                "backend": group.backend,
            },
        )
        return Generation(self._numbers, group, tuple(members))

    def _answers(self, url: str) -> bool:
        try:
            return httpx.get(f"{url}/readyz", timeout=PROBE_TIMEOUT_S).is_success
        except httpx.HTTPError:
            return False

    def _post(self, url: str, action: str, body: Message) -> ReplicaStatus:
        response = httpx.post(
            f"{url}/v1/weights/{action}",
            content=body.model_dump_json(),
            headers={"Content-Type": "application/json", **self._headers},
            timeout=httpx.Timeout(self._learner.publish_timeout_s + HTTP_MARGIN_S, connect=5.0),
        )
        if not response.is_success:
            raise WeightError(f"{url}: {action} gave {response.status_code}: {response.text[:500]}")
        return ReplicaStatus.model_validate_json(response.content)


class _Cursor:
    """Reads a stream of tensors as aligned bytes, bucket by bucket."""

    def __init__(self, tensors: Iterator[torch.Tensor], layout: Layout) -> None:
        self._tensors = tensors
        self._starts = [*layout.offsets, layout.num_bytes]
        self._index = -1
        self._raw = torch.empty(0, dtype=torch.uint8)

    def read(self, start: int, end: int) -> torch.Tensor:
        """Bytes `[start, end)` of the stream; padding is zero. Calls go upwards without gaps."""
        bucket_B = torch.zeros(end - start, dtype=torch.uint8)
        position = start
        while position < end:
            if self._index < 0 or position >= self._starts[self._index + 1]:
                self._index += 1
                self._raw = next(self._tensors).reshape(-1).view(torch.uint8)
            offset = position - self._starts[self._index]
            take = min(end, self._starts[self._index + 1]) - position
            piece = self._raw[offset : offset + take]
            bucket_B[position - start : position - start + piece.numel()] = piece
            position += take
        return bucket_B


def _is_gone(url: str) -> bool:
    """Whether nobody listens there any more.

    A transfer to it would only fail at its deadline. Slow is not gone: who does not answer in time
    may still receive.
    """
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 80), PROBE_TIMEOUT_S).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _succeeded(url: str, answer: "Future[ReplicaStatus]") -> bool:
    try:
        answer.result()
    except (WeightError, httpx.HTTPError) as error:
        logger.warning("replica dropped", extra={"url": url, "error": f"{error!r}"})
        return False
    return True
