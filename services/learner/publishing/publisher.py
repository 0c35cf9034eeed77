"""Weights out, as the learner's loop sees it: `publish(version)` on every rank.

    publish   capture (a collective, tens of milliseconds on a GPU), then deliver (rank 0 alone)
    settle    until `min_replicas` serve what was published last; the only reason to wait
    welcome   who came late or came back gets the last version

With `overlaps_publish` a delivery runs while the next step trains, and is settled before the next
capture; else `publish` settles it at once.

Neighbours: `train` calls these; the replicas' /v1/weights/* answer.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from common.config import Learner, Shared
from common.errors import WeightError
from common.logs import SAY_EVERY_S, NowAndThen
from common.messages import ReplicaStatus
from common.weights.messages import WeightVersion
from services.learner.model.policy import Policy
from services.learner.parallel import Ranks
from services.learner.publishing.delivery import Delivery, Outcome, Parcel
from services.learner.publishing.peers import Peers
from services.learner.publishing.snapshot import Snapshot

logger = logging.getLogger(__name__)

POLL_S = 0.2
RECEIVING = ("syncing", "serving")
"""Phases in which a replica takes weights."""


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
        epoch: int = 1,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Nothing is sent yet.

        Args:
            policy: whose weights are sent.
            shared: of the run.
            learner: of the run.
            ranks: all of the learner's.
            replicas: reads the registry; called on rank 0, in the caller's thread.
            run_tag: tells weights of equal version apart; only rank 0's matters.
            epoch: of this learner's hold on the run; replicas refuse an older one.
            should_stop: ends a wait for replicas early; rank 0's.
        """
        self._settings = learner
        self._replicas, self._run_tag = replicas, run_tag
        self._should_stop = should_stop
        dtype: torch.dtype = getattr(torch, shared.dtype)

        adapters = policy.adapters

        def changes(name: str, weight: Tensor) -> bool:
            return weight.requires_grad or (adapters is not None and name in adapters)

        def snapshot(*, trained: bool) -> Snapshot:
            def weights() -> Iterator[tuple[str, Tensor]]:
                return (nw for nw in policy.named_weights() if changes(*nw) is trained)

            return Snapshot(
                weights,
                dtype=dtype,
                bucket_bytes=learner.bucket_bytes,
                ranks=ranks,
                place=learner.weight_staging,
                deltas=trained and learner.publish == "delta",
                values=adapters.merged_values if trained and adapters is not None else None,
            )

        self._frozen, self._trained = snapshot(trained=False), snapshot(trained=True)
        self._courier = _Courier(shared, learner, ranks, epoch) if ranks.is_main else None
        self._has_frozen = False
        self._parcel: Parcel | None = None
        self._step = 0
        self._served: dict[str, ReplicaStatus] = {}
        self.last: WeightVersion | None = None
        """Rank 0: the version that was settled last."""
        self.figures: dict[str, float] = {}
        """Rank 0: of the version that was settled last, for the metrics."""

    def publish(self, version: int, *, step: int) -> None:
        """Capture the weights, and have them delivered; a collective.

        Raises:
            WeightError: fewer than `min_replicas` served the version before, or (without overlap)
                this one, within `wait_for_replicas_s`.
        """
        self.settle()
        first = not self._has_frozen
        if first:
            self._frozen.begin()
        self._trained.begin()
        if self._courier is not None:
            self._parcel = Parcel(version, self._run_tag, self._frozen, self._trained)
            self._step, self._served = step, {}
            self._courier.send(self._parcel, self._receivers())
        if first:
            self._frozen.capture()
            self._has_frozen = True
        self._trained.capture()
        if not self._settings.overlaps_publish:
            self.settle()

    def settle(self) -> None:
        """Rank 0: until `min_replicas` serve the published version, or the run is asked to stop.

        Raises:
            WeightError: too few for too long; says who failed and why.
        """
        if self._courier is None or self._parcel is None:
            return
        started, word = time.monotonic(), NowAndThen(first_s=SAY_EVERY_S)
        while True:
            self._take_in(self._courier.wait())
            missing = self._settings.min_replicas - len(self._served)
            if missing <= 0 or self._should_stop():
                return
            if time.monotonic() - started > self._settings.wait_for_replicas_s:
                raise WeightError(self._too_few())
            if word.is_due():
                logger.warning("waiting for replicas", extra={"found": self._too_few()})
            time.sleep(POLL_S)
            if strangers := self._strangers():
                self._courier.send(self._parcel, strangers)

    def welcome(self) -> None:
        """Rank 0: give the last version to live replicas that lack it, beside whatever goes on."""
        if self._courier is None or self._parcel is None or self._courier.is_busy:
            return
        self._take_in(self._courier.wait())
        if strangers := self._strangers():
            self._courier.send(self._parcel, strangers)
            if not self._settings.overlaps_publish:
                self._take_in(self._courier.wait())

    @property
    def has_strangers(self) -> bool:
        """Rank 0: whether a live replica lacks the weights that were published."""
        return bool(self._strangers())

    def member_urls(self) -> list[str]:
        """Rank 0: replicas that acknowledged the last version, once it is settled."""
        return [replica.url for replica in self._served.values()]

    def close(self) -> None:
        """Leave the weight groups."""
        if self._courier is not None:
            self._courier.close()

    # --- rank 0 -------------------------------------------------------------------------------

    def _receivers(self) -> list[ReplicaStatus]:
        return [replica for replica in self._replicas() if replica.phase in RECEIVING]

    def _strangers(self) -> list[ReplicaStatus]:
        assert self._courier is not None
        return [
            replica
            for replica in self._receivers()
            if replica.replica not in self._served and not self._courier.is_out(replica)
        ]

    def _take_in(self, outcome: Outcome | None) -> None:
        if outcome is None or not outcome.served:
            return
        first = not self._served
        self._served |= outcome.served
        if not first:  # who came late: the figures stay those of the version's own delivery
            return
        pauses = [item.pause_ms for item in outcome.served.values() if item.pause_ms is not None]
        self.figures = {
            "learner/transfer_s": outcome.seconds,
            "learner/transfer_bytes": float(outcome.num_bytes),
            "learner/pause_ms": max(pauses, default=0.0),
        }
        self.last = WeightVersion(
            version=outcome.version,
            step=self._step,
            digest=self._trained.wait_digest(),
            num_bytes=outcome.num_bytes,
        )
        logger.info(
            "published",
            extra={
                "policy_version": outcome.version,
                "step": self._step,
                "replicas": len(outcome.served),
                "digest": self.last.digest,
                "num_bytes": outcome.num_bytes,
                "publish_s": round(outcome.seconds, 4),
                "pause_ms": self.figures["learner/pause_ms"],
            },
        )

    def _too_few(self) -> str:
        assert self._courier is not None
        reasons = self._courier.reasons(self._receivers())
        return (
            f"found {len(self._served)} replica(s) that serve the weights, wanted "
            f"{self._settings.min_replicas} within {self._settings.wait_for_replicas_s:g} s "
            "(learner.min_replicas, learner.wait_for_replicas_s): "
            + (f"left out for now: {reasons}" if reasons else "start rollout replicas")
        )


class _Courier:
    """Deliveries, one at a time, in an event loop of a thread of its own."""

    def __init__(self, shared: Shared, learner: Learner, ranks: Ranks, epoch: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, daemon=True, name="courier")
        self._thread.start()
        self._peers = Peers(shared.tokens.of("control"))
        self._delivery = Delivery(
            peers=self._peers,
            host=learner.host,
            device=ranks.device,
            timeout_s=learner.publish_timeout_s,
            epoch=epoch,
        )
        self._under_way: Future[Outcome] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a delivery is under way."""
        return self._under_way is not None and not self._under_way.done()

    def send(self, parcel: Parcel, receivers: Sequence[ReplicaStatus]) -> None:
        """Begin a delivery; the one before is over."""
        assert not self.is_busy
        self._under_way = asyncio.run_coroutine_threadsafe(
            self._delivery.deliver(parcel, receivers), self._loop
        )

    def wait(self) -> Outcome | None:
        """What became of the delivery under way, once; None without one."""
        under_way, self._under_way = self._under_way, None
        while under_way is not None:
            try:
                return under_way.result(SAY_EVERY_S)
            except TimeoutError:
                if under_way.done():
                    raise
                logger.warning("weights are still being delivered")
        return None

    def is_out(self, replica: ReplicaStatus) -> bool:
        """Whether it has a strike and is not to be asked yet."""
        return self._delivery.strikes.is_out(replica)

    def reasons(self, replicas: Sequence[ReplicaStatus]) -> str:
        """Why some of these do not serve."""
        return self._delivery.strikes.reasons(replicas)

    def close(self) -> None:
        """End the loop and leave all groups."""
        if self._under_way is not None:
            self._under_way.cancel()
        self._delivery.close()
        asyncio.run_coroutine_threadsafe(self._peers.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run_loop(self) -> None:
        self._loop.run_forever()
        self._loop.close()
