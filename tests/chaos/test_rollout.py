"""A replica that dies or freezes at any moment: others answer, and every row is trained once."""

import signal
from collections.abc import Iterator

import pytest

from jobs.local.processes import Child
from tests.fixtures.servers.hard_ring import HardRing, freeze, kill, thaw, until_stopped


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HardRing]:
    with HardRing(tmp_path_factory.mktemp("ring")) as ring:
        ring.replica("steady", restarts=3)
        yield ring


@pytest.fixture(autouse=True)
def _nothing_from_before(ring: HardRing) -> Iterator[None]:
    yield
    ring.dry_up()


def goes_on(ring: HardRing, victim: Child) -> None:
    """One that was taken for dead is a replica like any other."""
    thaw(victim)
    ring.train(epochs=2)
    assert victim.process.poll() is None
    victim.process.terminate()
    assert victim.process.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_idle(ring: HardRing, number: int) -> None:
    ring.train()
    ring.dry_up()
    victim = ring.replica(f"idle-{number}")
    (kill if number == signal.SIGKILL else freeze)(victim)
    ring.train()
    if number == signal.SIGSTOP:
        goes_on(ring, victim)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_generating(ring: HardRing, number: int) -> None:
    ring.dry_up()
    freeze(steady := ring.child("steady"))
    victim = ring.replica(f"generating-{number}", generate_s=1.0)
    ring.feed_all()
    ring.until_said(victim, "generating")
    (kill if number == signal.SIGKILL else freeze)(victim)
    thaw(steady)
    ring.train()
    if number == signal.SIGSTOP:
        goes_on(ring, victim)


@pytest.mark.parametrize("moment", ["pushing", "pushed"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_pushing(ring: HardRing, number: int, moment: str) -> None:
    """Just before the group and its prompt's end are one transaction, and just after it."""
    ring.dry_up()
    freeze(steady := ring.child("steady"))
    victim = ring.replica(f"{moment}-{number}", **{moment: number})
    ring.feed_all()
    if number == signal.SIGKILL:
        assert victim.process.wait(20) == -signal.SIGKILL
    else:
        until_stopped(victim)
    thaw(steady)
    ring.train()
    if number == signal.SIGSTOP:
        goes_on(ring, victim)
