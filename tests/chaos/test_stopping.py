"""SIGTERM while something that a replica needs is away: it ends in its time all the same."""

import time
from pathlib import Path

import pytest

from tests.fixtures.replicas.mortal_replica import DRAIN_S
from tests.fixtures.servers.hard_ring import HardRing, freeze, kill

SLACK_S = 6.0
"""The machine may be busy; before, it took 35 s, which is when a process is ended by force."""


@pytest.mark.parametrize("moment", ["idle", "generating"])
@pytest.mark.parametrize("how", [kill, freeze])
def test_without_redis(tmp_path: Path, moment: str, how: object) -> None:
    with HardRing(tmp_path) as ring:
        replica = ring.replica("leaving", generate_s=1.0)
        if moment == "generating":
            ring.feed_all()
            ring.until_said(replica, "generating")
        ring.children.unwatch(ring.redis)
        assert callable(how)
        how(ring.redis)
        started = time.monotonic()
        replica.process.terminate()
        code = replica.process.wait(60)
        kill(ring.redis)
        assert time.monotonic() - started < DRAIN_S + SLACK_S, replica.tail
        assert code == 0, replica.tail
