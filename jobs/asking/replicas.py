"""Questions to rollout replicas over HTTP: `GenerateRequest` → `Reply`.

`Replicas` asks in turn and suits a few questions. `Fleet` keeps every replica busy for as long as
it takes: replicas pull from one queue (`jobs.asking.piles`), so a slow one holds nobody back, and
what a dead one had in work goes to the others. Both take an `Asker`, `ask` unless told otherwise:
`jobs.asking.openai` has one for servers that are no replicas. Neighbours: POST /v1/generate of
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
from typing import Generic, Protocol, TypeVar

import httpx
from pydantic import SecretStr
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from common.config import bearer
from common.errors import EngineError
from common.logs import NowAndThen
from common.messages import GenerateRequest, GenerateResponse, ReplicaStatus
from common.rest import direct
from jobs.asking.answers import Reply, of_replica
from jobs.asking.piles import Numbered, Piles
from jobs.asking.refusals import MAX_PAUSE_S, Broken, Busy, NotReady, raise_for_status

logger = logging.getLogger(__name__)

TIMEOUT = httpx.Timeout(10.0, read=120.0)
FLEET_TIMEOUT = httpx.Timeout(10.0, read=600.0, pool=None)
"""A full replica queues what it is asked; 2,048 tokens of thought on a long clip take minutes."""
RETRY_S = 60.0
"""How long a replica may be unreachable or not ready."""
BUSY_S = 900.0
"""How long a server may say that it is busy without one answer in between."""
MAX_DELIVERIES = 3
"""A question during which so many connections broke is given up: it may be what breaks them."""
POLL_S = 0.2

Job = TypeVar("Job")
Ask = Callable[[GenerateRequest], Awaitable[Reply]]


class Asker(Protocol):
    """How one request is put to one server."""

    async def __call__(self, client: httpx.AsyncClient, *, request: GenerateRequest) -> Reply:
        """As `ask`."""


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


async def ask(client: httpx.AsyncClient, *, request: GenerateRequest) -> Reply:
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
    return of_replica(GenerateResponse.model_validate_json(answer.content))


class Replicas:
    """Rollout replicas asked in turn; the clients belong to the caller."""

    def __init__(
        self,
        clients: Sequence[httpx.AsyncClient],
        *,
        concurrency: int,
        retry_s: float = RETRY_S,
        ask: Asker = ask,
    ) -> None:
        self._clients = itertools.cycle(clients)
        self._ask = ask
        self._in_flight = asyncio.Semaphore(concurrency)
        self._retry_s = retry_s
        self._word = NowAndThen()

    async def generate(self, request: GenerateRequest) -> Reply:
        """Answers to one request; each retry asks the next replica.

        Raises:
            Refused: this request cannot be served (422 and the like).
            EngineError: no replica could be reached, or none lets us in.
        """
        attempts = AsyncRetrying(
            retry=retry_if_exception_type((httpx.TransportError, NotReady)),
            wait=_pause_s,
            stop=stop_after_delay(self._retry_s),
            reraise=True,
        )

        async def once() -> Reply:  # tenacity takes a lambda for a plain function
            client = next(self._clients)
            try:
                return await self._ask(client, request=request)
            except (httpx.TransportError, NotReady) as error:
                _say_silent(client, error, word=self._word)
                raise

        async with self._in_flight:
            try:
                return await attempts(once)
            except httpx.TransportError as error:
                raise EngineError(
                    f"nobody answered within {self._retry_s:.0f} s: {error!r}"
                ) from error


class Fleet:
    """Rollout replicas that pull jobs from one queue; the clients belong to the caller."""

    def __init__(
        self,
        clients: Sequence[httpx.AsyncClient],
        *,
        concurrency: int,
        retry_s: float = RETRY_S,
        ask: Asker = ask,
    ) -> None:
        """`concurrency`: jobs in work at once in each replica."""
        self._clients = clients
        self._ask = ask
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
        shift = _Shift(
            Piles(jobs, pile_of=pile_of),
            do=do,
            give_up=give_up,
            num_lanes=len(self._clients),
            retry_s=self._retry_s,
        )
        lanes = [_Lane(client, self._ask) for client in self._clients]
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


class _Lane:
    """What is known about one replica."""

    def __init__(self, client: httpx.AsyncClient, asker: Asker) -> None:
        self._client = client
        self._asker = asker
        self.failing_since: float | None = None
        self.busy_since: float | None = None
        self._word = NowAndThen()

    def say_silent(self, error: Exception) -> None:
        """It gave no answer: said now and then."""
        _say_silent(self._client, error, word=self._word)

    def failed(self) -> float:
        """Seconds since it first failed, without an answer in between."""
        now = time.monotonic()
        if self.failing_since is None:
            self.failing_since = now
        return now - self.failing_since

    async def ask(self, request: GenerateRequest) -> Reply:
        """As the fleet's asker."""
        reply = await self._asker(self._client, request=request)
        self.failing_since = self.busy_since = None
        return reply

    def busy(self) -> float:
        """Seconds since it first was, without an answer in between; it is there, and well."""
        self.failing_since = None
        now = time.monotonic()
        if self.busy_since is None:
            self.busy_since = now
        return now - self.busy_since


class _Shift(Generic[Job]):
    """One `Fleet.work`: the queue and who is left to empty it."""

    def __init__(
        self,
        piles: Piles[Job],
        *,
        do: Callable[[Job, Ask], Awaitable[None]],
        give_up: Callable[[Job, str], None],
        num_lanes: int,
        retry_s: float,
    ) -> None:
        self._piles = piles
        self._do = do
        self._give_up = give_up
        self._retry_s = retry_s
        self._num_lanes = num_lanes
        self._lost: set[_Lane] = set()
        self._broken: Counter[int] = Counter()

    async def done(self) -> None:
        """Until every job is done or given up."""
        await self._piles.drained()

    async def pull(self, lane: _Lane) -> None:
        """Do jobs until cancelled, or until the replica is lost."""
        pauses = _pauses()
        while lane not in self._lost:
            numbered = await self._piles.take(lane)
            try:
                await self._do(numbered[1], lane.ask)
            except Busy as error:
                self._put_back(numbered, error)
                self._check_lost(lane, error, since_s=lane.busy(), limit_s=BUSY_S)
                await asyncio.sleep(error.retry_after_s)
            except (httpx.TransportError, NotReady) as error:
                self._put_back(numbered, error)
                lane.say_silent(error)
                self._check_lost(lane, error, since_s=lane.failed(), limit_s=self._retry_s)
                await asyncio.sleep(next(pauses))
            else:
                self._piles.done()
                pauses = _pauses()

    def _put_back(self, numbered: Numbered[Job], error: Exception) -> None:
        number, job = numbered
        # Only what a replica had begun can be what broke it.
        never_began = not isinstance(error, Broken) and isinstance(
            error, NotReady | httpx.ConnectError | httpx.ConnectTimeout
        )
        self._broken[number] += not never_began
        if self._broken[number] < MAX_DELIVERIES:
            self._piles.put_back(numbered)
        else:
            what = "the server failed" if isinstance(error, Broken) else "the connection broke"
            self._give_up(job, f"{what} {MAX_DELIVERIES} times: {error!r}")
            self._piles.done()

    def _check_lost(self, lane: _Lane, error: Exception, *, since_s: float, limit_s: float) -> None:
        if since_s < limit_s:
            return
        self._lost.add(lane)
        if len(self._lost) == self._num_lanes:
            raise EngineError(f"nobody answered within {limit_s:.0f} s: {error!r}") from error


_exponential_s = wait_random_exponential(multiplier=0.2, max=MAX_PAUSE_S)


def _pause_s(tried: RetryCallState) -> float:
    """As a busy server says, else longer from time to time."""
    error = tried.outcome.exception() if tried.outcome is not None else None
    return error.retry_after_s if isinstance(error, Busy) else _exponential_s(tried)


def _pauses() -> Iterator[float]:
    """Seconds to wait after each failure in a row."""
    pause_s = 0.2
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, MAX_PAUSE_S)
