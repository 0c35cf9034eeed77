"""Questions to rollout replicas over HTTP: `GenerateRequest` → `GenerateResponse`.

`Replicas` asks in turn and suits a few questions. `Fleet` keeps every replica busy for as long as
it takes: replicas pull from one queue (`jobs.asking.piles`), so a slow one holds nobody back, and
what a dead one had in work goes to the others. Neighbours: POST /v1/generate of
`services.rollout.app`; `jobs.ground.command` and `jobs.evaluation.runner` ask.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Hashable,
    Iterable,
    Iterator,
    Sequence,
)
from typing import Generic, TypeVar

import httpx
from pydantic import SecretStr
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from common.config import bearer
from common.errors import EngineError
from common.logs import NowAndThen
from common.messages import GenerateRequest, GenerateResponse, ReplicaStatus
from common.rest import direct
from jobs.asking.piles import Numbered, Piles
from jobs.asking.refusals import MAX_PAUSE_S, Busy, NotReady, raise_for_status

logger = logging.getLogger(__name__)

TIMEOUT = httpx.Timeout(10.0, read=120.0)
FLEET_TIMEOUT = httpx.Timeout(10.0, read=600.0, pool=None)
"""A full replica queues what it is asked; 2,048 tokens of thought on a long clip take minutes."""
RETRY_S = 60.0
"""How long a replica may be unreachable or not ready."""
MAX_DELIVERIES = 3
"""A question during which so many connections broke is given up: it may be what breaks them."""
POLL_S = 0.2

Job = TypeVar("Job")
Ask = Callable[[GenerateRequest], Awaitable[GenerateResponse]]


@contextlib.asynccontextmanager
async def connected(
    endpoints: Iterable[str], *, token: SecretStr | None, patience: httpx.Timeout = TIMEOUT
) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Clients of replicas by base URL; closed at the end."""
    async with contextlib.AsyncExitStack() as owned:
        yield [
            await owned.enter_async_context(
                direct.async_client(
                    base_url=url,
                    headers=bearer(token),
                    timeout=patience,
                    limits=httpx.Limits(max_connections=None),
                )
            )
            for url in endpoints
        ]


class Replicas:
    """Rollout replicas asked in turn; the clients belong to the caller."""

    def __init__(
        self, clients: Sequence[httpx.AsyncClient], *, concurrency: int, retry_s: float = RETRY_S
    ) -> None:
        self._clients = itertools.cycle(clients)
        self._in_flight = asyncio.Semaphore(concurrency)
        self._retry_s = retry_s
        self._word = NowAndThen()

    async def generate(self, request: GenerateRequest) -> GenerateResponse:
        """Answers to one request; each retry asks the next replica.

        Raises:
            Refused: this request cannot be served (422 and the like).
            EngineError: no replica could be reached, or none lets us in.
        """
        attempts = AsyncRetrying(
            retry=retry_if_exception_type((httpx.TransportError, NotReady)),
            wait=wait_random_exponential(multiplier=0.2, max=MAX_PAUSE_S),
            stop=stop_after_delay(self._retry_s),
            reraise=True,
        )

        async def once() -> GenerateResponse:  # tenacity takes a lambda for a plain function
            client = next(self._clients)
            try:
                return await ask(client, request=request)
            except (httpx.TransportError, NotReady) as error:
                _say_silent(client, error, word=self._word)
                raise

        async with self._in_flight:
            try:
                return await attempts(once)
            except httpx.TransportError as error:
                raise EngineError(
                    f"no replica answered within {self._retry_s:.0f} s: {error!r}"
                ) from error


class Fleet:
    """Rollout replicas that pull jobs from one queue; the clients belong to the caller."""

    def __init__(
        self, clients: Sequence[httpx.AsyncClient], *, concurrency: int, retry_s: float = RETRY_S
    ) -> None:
        """`concurrency`: jobs in work at once in each replica."""
        self._clients = clients
        self._concurrency = concurrency
        self._retry_s = retry_s

    async def work(
        self,
        jobs: Iterable[Job],
        *,
        do: Callable[[Job, Ask], Awaitable[None]],
        give_up: Callable[[Job, str], None],
        pile_of: Callable[[Job], Hashable],
    ) -> None:
        """Do every job once, in their order as far as replicas allow.

        Args:
            jobs: the longest first, so that none is left alone at the end.
            do: does one job by asking one replica; connection errors that it lets through send the
                job to whoever is free.
            give_up: told about a job during which the connection broke `MAX_DELIVERIES` times.
            pile_of: what jobs share that a replica caches, such as their clip.

        Raises:
            EngineError: every replica was unreachable for `retry_s`; or what `do` raised.
        """

        async def ask_lane(job: Job, lane: Lane) -> None:
            await do(job, lane.ask)

        await self.work_with(jobs, do=ask_lane, give_up=give_up, pile_of=pile_of)

    async def work_with(
        self,
        jobs: Iterable[Job],
        *,
        do: Callable[[Job, "Lane"], Awaitable[None]],
        give_up: Callable[[Job, str], None],
        pile_of: Callable[[Job], Hashable],
    ) -> None:
        """As `work`, where `do` knows how to talk to a server: not all of them are replicas."""
        shift = _Shift(
            Piles(jobs, pile_of=pile_of),
            do=do,
            give_up=give_up,
            num_lanes=len(self._clients),
            retry_s=self._retry_s,
        )
        lanes = [Lane(client) for client in self._clients]
        try:
            async with asyncio.TaskGroup() as group:
                pullers = [
                    group.create_task(shift.pull(lane))
                    for lane in lanes
                    for _ in range(self._concurrency)
                ]
                await shift.done()
                for puller in pullers:
                    puller.cancel()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors


async def ask(client: httpx.AsyncClient, *, request: GenerateRequest) -> GenerateResponse:
    """One request to one replica.

    Raises:
        Refused: it cannot be served (422 and the like).
        NotReady: the replica is still loading; Busy: it has too much to do.
        EngineError: it does not let us in.
        httpx.TransportError: it could not be reached.
    """
    answer = await client.post(
        "/v1/generate",
        content=request.model_dump_json().encode(),
        headers={"Content-Type": "application/json"},
    )
    raise_for_status(answer)
    return GenerateResponse.model_validate_json(answer.content)


def one_version(replies: Iterable[GenerateResponse], *, wanted: int | None = None) -> int:
    """The weight version that wrote all answers.

    A replica that restarted serves older weights until the learner finds it.

    Raises:
        EngineError: several versions answered, or another one than `wanted`.
    """
    samples = [answer.sample for reply in replies for answer in reply.answers]
    versions = {span.version for sample in samples for span in sample.version_spans}
    if len(versions) != 1 or wanted not in (None, *versions):
        raise EngineError(
            f"found answers of weight versions {sorted(versions)}, wanted "
            f"{'one' if wanted is None else wanted}: weights changed or a replica restarted; "
            "wait until every replica serves the last version and evaluate again"
        )
    return versions.pop()


async def served(
    clients: Sequence[httpx.AsyncClient], *, retry_s: float = RETRY_S
) -> tuple[int, str | None]:
    """The weights that the first replica to be ready serves; `one_version` checks the rest.

    Returns:
        Policy version, and the tag of the run that made them (None: a checkpoint on disk, which a
        replica of a ring serves as version 0 until its learner comes).

    Raises:
        EngineError: no replica is ready within `retry_s`.
    """
    word = NowAndThen()
    try:
        async with asyncio.timeout(retry_s):
            for client in itertools.cycle(clients):
                weights = await _weights(client, word=word)
                if weights is not None:
                    return weights
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        pass
    raise EngineError(
        f"found no replica ready within {retry_s:.0f} s, wanted one of "
        f"{', '.join(str(client.base_url) for client in clients)}: --endpoint"
    )


async def _weights(client: httpx.AsyncClient, *, word: NowAndThen) -> tuple[int, str | None] | None:
    try:
        answer = await client.get("/readyz")
    except httpx.TransportError as error:
        _say_silent(client, error, word=word)
        return None
    if answer.is_success:
        status = ReplicaStatus.model_validate_json(answer.content)
        return status.version or 0, status.run_tag
    _say_silent(client, f"status {answer.status_code}, it is not ready", word=word)
    return None


def _say_silent(client: httpx.AsyncClient, why: Exception | str, *, word: NowAndThen) -> None:
    """A replica gives no answer: said now and then, and it is asked again."""
    if word.is_due():
        said = why if isinstance(why, str) else f"{type(why).__name__}: {why}"
        logger.warning("no answer from %s (%s): asking again", client.base_url, said)


class Lane:
    """What is known about one replica."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.failing_since: float | None = None
        self.word = NowAndThen()

    def failed(self) -> float:
        """Seconds since it first failed, without an answer in between."""
        now = time.monotonic()
        if self.failing_since is None:
            self.failing_since = now
        return now - self.failing_since

    async def ask(self, request: GenerateRequest) -> GenerateResponse:
        """As `ask` of a replica."""
        reply = await ask(self.client, request=request)
        self.answered()
        return reply

    def answered(self) -> None:
        """It is there, and well."""
        self.failing_since = None


class _Shift(Generic[Job]):
    """One `Fleet.work`: the queue and who is left to empty it."""

    def __init__(
        self,
        piles: Piles[Job],
        *,
        do: Callable[[Job, "Lane"], Awaitable[None]],
        give_up: Callable[[Job, str], None],
        num_lanes: int,
        retry_s: float,
    ) -> None:
        self._piles = piles
        self._do = do
        self._give_up = give_up
        self._retry_s = retry_s
        self._num_lanes = num_lanes
        self._lost: set[Lane] = set()
        self._broken: Counter[int] = Counter()

    async def done(self) -> None:
        """Until every job is done or given up."""
        await self._piles.drained()

    async def pull(self, lane: Lane) -> None:
        """Do jobs until cancelled, or until the replica is lost."""
        pauses = _pauses()
        while lane not in self._lost:
            numbered = await self._piles.take(lane)
            try:
                await self._do(numbered[1], lane)
            except Busy as error:
                lane.failing_since = None
                self._put_back(numbered, error)
                await asyncio.sleep(error.retry_after_s)
            except (httpx.TransportError, NotReady) as error:
                self._put_back(numbered, error)
                _say_silent(lane.client, error, word=lane.word)
                self._check_lost(lane, error)
                await asyncio.sleep(next(pauses))
            else:
                self._piles.done()
                pauses = _pauses()

    def _put_back(self, numbered: Numbered[Job], error: Exception) -> None:
        number, job = numbered
        # Only what a replica had begun can be what broke it.
        never_began = isinstance(error, NotReady | httpx.ConnectError | httpx.ConnectTimeout)
        self._broken[number] += not never_began
        if self._broken[number] < MAX_DELIVERIES:
            self._piles.put_back(numbered)
        else:
            self._give_up(job, f"the connection broke {MAX_DELIVERIES} times: {error!r}")
            self._piles.done()

    def _check_lost(self, lane: Lane, error: Exception) -> None:
        if lane.failed() < self._retry_s:
            return
        self._lost.add(lane)
        if len(self._lost) == self._num_lanes:
            raise EngineError(
                f"no replica answered within {self._retry_s:.0f} s: {error!r}"
            ) from error


def _pauses() -> Iterator[float]:
    """Seconds to wait after each failure in a row."""
    pause_s = 0.2
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, MAX_PAUSE_S)
