"""Who is asked, and who is left alone for a while: strikes with growing back-off.

A replica that fails to join, to receive or to apply gets a strike and is left out. It is asked
again after a time that doubles with each strike, or at once under another name (one that restarts
registers anew). Serving a version clears its strikes.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import WeightError
from common.messages import ReplicaStatus

logger = logging.getLogger(__name__)

FIRST_BACK_OFF_S = 5.0
LONGEST_BACK_OFF_S = 300.0


class PeerError(WeightError):
    """One replica did not do what it was asked."""

    def __init__(self, message: str, *, is_own_fault: bool) -> None:
        super().__init__(message)
        self.is_own_fault = is_own_fault


@dataclass
class Strike:
    """Why and until when a replica is left out."""

    count: int
    until_s: float
    reason: str


class Strikes:
    """Of all replicas, by name."""

    def __init__(self) -> None:
        self._strikes: dict[str, Strike] = {}

    def add(self, replica: ReplicaStatus, reason: str) -> None:
        """Leave a replica out for a while."""
        before = self._strikes.get(replica.replica)
        count = before.count + 1 if before else 1
        back_off_s = min(FIRST_BACK_OFF_S * 2 ** (count - 1), LONGEST_BACK_OFF_S)
        self._strikes[replica.replica] = Strike(count, time.monotonic() + back_off_s, reason)
        logger.warning(
            "replica left out",
            extra={
                "replica": replica.replica,
                "url": replica.url,
                "error": reason,
                "strikes": count,
                "asked_again_in_s": back_off_s,
            },
        )

    def clear(self, replica: ReplicaStatus) -> None:
        """It serves what it was sent."""
        self._strikes.pop(replica.replica, None)

    def is_out(self, replica: ReplicaStatus) -> bool:
        """Whether it is not to be asked yet."""
        strike = self._strikes.get(replica.replica)
        return strike is not None and time.monotonic() < strike.until_s

    def reasons(self, replicas: Sequence[ReplicaStatus]) -> str:
        """Who of these failed, and why; for an error."""
        found = [
            f"{replica.replica} at {replica.url}: {strike.reason}"
            for replica in replicas
            if (strike := self._strikes.get(replica.replica)) is not None
        ]
        return "; ".join(found)
