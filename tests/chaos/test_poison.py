"""A row that kills every replica is given up, listed and rejected; its neighbours are trained."""

from pathlib import Path

import pytest

from common.config import Rollout
from tests.fixtures.servers.hard_ring import HardRing

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]
POISON = "7"
MAX_DEATHS = Rollout().max_deaths


def test_a_row_that_kills_whoever_reads_it(tmp_path: Path) -> None:
    with HardRing(tmp_path) as ring:
        replicas = [ring.replica(name, restarts=20, poison=POISON) for name in ("left", "right")]
        ring.train()
        ring.dry_up()  # of the next epoch it may have been asked already
        state = ring.feed.state()
        assert {(item.row_id, item.reason) for item in state.given_up} == {
            (POISON, f"{MAX_DEATHS} replica(s) died over it")
        }
        assert [(item.row_id, item.reason) for item in state.rejected] == [(POISON, "dead letter")]
        lives = sum(replica.restarts for replica in replicas)
        assert lives <= MAX_DEATHS * len(state.given_up)
        ring.train()
        ring.dry_up()
        after = ring.feed.state()
        assert after.epoch > state.epoch
        assert after.given_up == state.given_up, "it is asked in no later epoch"
