"""Which weight groups a delivery keeps."""

from typing import Any, cast

import pytest
import torch

from common.messages import ReplicaStatus
from services.learner.publishing.delivery import Delivery, Group, Parcel
from services.learner.publishing.membership import PeerError
from tests.fixtures.wire import replica_status


class Sick:
    """Peers of which none can be introduced."""

    async def vouch(self, _: ReplicaStatus) -> None:
        """As `Peers.vouch`."""
        raise PeerError("connection refused", is_own_fault=True)


class Open:
    """A group, and whether it is."""

    def __init__(self) -> None:
        self.is_open = True

    def close(self) -> None:
        """As `Group.close`."""
        self.is_open = False


class Made:
    """A snapshot with its digest."""

    digest = "d"

    def wait_digest(self) -> str:
        """As `Snapshot.wait_digest`."""
        return self.digest


def parcel(version: int) -> Parcel:
    return Parcel(version, "t", cast(Any, Made()), cast(Any, Made()))


@pytest.fixture
def delivery() -> Delivery:
    cpu = torch.device("cpu")
    return Delivery(peers=cast(Any, Sick()), host="127.0.0.1", device=cpu, timeout_s=5, epoch=1)


async def test_who_cannot_be_introduced_leaves_the_groups_of_others(delivery: Delivery) -> None:
    """It is tried again whenever its strike is over, for as long as it is registered."""
    await delivery.deliver(parcel(3), [])
    healthy = Open()
    delivery._groups[frozenset({"a", "b"})] = cast(Group, healthy)
    outcome = await delivery.deliver(parcel(3), [replica_status("sick")])
    assert outcome.failed == {"sick": "connection refused"}
    assert healthy.is_open


async def test_a_group_of_nobody_that_lives_is_closed_with_the_next_version(
    delivery: Delivery,
) -> None:
    await delivery.deliver(parcel(3), [])
    gone = Open()
    delivery._groups[frozenset({"a", "b"})] = cast(Group, gone)
    await delivery.deliver(parcel(4), [])
    assert not gone.is_open
