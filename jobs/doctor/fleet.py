"""Every replica of a run and its learner, asked one by one: `tempsamp doctor --fleet`.

    Run -> what services say of themselves -> findings

Weights must be able to travel: where a learner has the run, its replicas have its version; where
none has, this machine meets each replica as a learner would before it is told anything (a
rehearsal: a group of two, one small message over NCCL or gloo). A replica loses nothing by it.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import httpx

from common.config import Run, bearer
from common.errors import ConfigError, QueueError, TempSampError
from common.messages import ReplicaStatus
from common.queue.broker import Hold
from common.rest import direct
from common.rest.fleet_api import LearnerReport, ReplicaReport, software
from common.rest.refusals import detail_of
from common.weights.messages import JoinWeightGroup
from jobs.doctor.finding import Finding, one_line
from jobs.doctor.neighbours import clock
from jobs.fleet.services import Fleet, Replica, look, opened, url_of_learner, vouched
from jobs.fleet.table import problem_in_words
from jobs.local.terminal import NO_ANSWER, took

AREA = "fleet"
MEET_S = 15.0
"""For a replica and this machine to meet; a join takes milliseconds."""


@dataclass(frozen=True)
class Seen:
    """The fleet, and who has the run."""

    fleet: Fleet
    hold: Hold
    at_s: float
    """Wall clock when it was asked."""


def fleet(run: Run) -> Iterator[Finding]:
    """Everything of this module."""
    try:
        seen = asyncio.run(_see(run))
    except (ConfigError, QueueError) as error:
        cure = "see the lines of redis"
        yield Finding(AREA, "registry", "fail", one_line(str(error)), cure)
        return
    yield registry(seen.fleet, wanted=run.learner.min_replicas)
    yield learner(seen.fleet, hold=seen.hold)
    for replica in seen.fleet.replicas:
        yield from of_replica(replica, learner=seen.fleet.learner, at_s=seen.at_s)
    if not seen.hold.holder:
        yield from rehearsals(run, seen)


def registry(fleet: Fleet, *, wanted: int) -> Finding:
    """As many replicas as a run waits for."""
    names = ", ".join(replica.status.replica for replica in fleet.replicas) or "none"
    if len(fleet.replicas) >= wanted:
        return Finding(AREA, "registry", "ok", f"{len(fleet.replicas)}: {names}")
    cure = (
        "start them with this shared.run_id and shared.redis_url; their /readyz and log say what "
        "they wait for"
    )
    found = f"{names}, wanted {wanted} (learner.min_replicas)"
    return Finding(AREA, "registry", "fail", found, cure)


def learner(fleet: Fleet, *, hold: Hold) -> Finding:
    """Whether the run has one, and whether it answers."""
    if fleet.learner is not None:
        report = fleet.learner
        at = f", step {report.step}" if report.step is not None else ""
        return Finding(AREA, "learner", "ok", f"{report.phase}{at}")
    if not hold.holder:
        return Finding(AREA, "learner", "ok", "nobody has the run; it may be started")
    found = f"{NO_ANSWER} from {hold.holder}, who has the run: {fleet.learner_unreachable}"
    cure = "learner.metrics_host and learner.metrics_port have to be reachable from here"
    return Finding(AREA, "learner", "warn", found, cure)


def of_replica(
    replica: Replica, *, learner: LearnerReport | None, at_s: float
) -> Iterator[Finding]:
    """One replica: reachable, well, of the learner's version, with our software and time."""
    name, report = replica.status.replica, replica.report
    if report is None:
        cure = "rollout.advertise_host has to be reachable from here, with the same token"
        found = f"{NO_ANSWER} at {replica.status.url}: {replica.unreachable}"
        yield Finding(AREA, name, "fail", one_line(found), cure)
        return
    yield well(report)
    if learner is not None and learner.version is not None:
        yield version(report.status, newest=learner.version)
    if report.machine is not None:
        yield same_software(name, report.machine.software, ours=software())
        yield clock(report.machine.clock_s, now_s=at_s, whose=name)


def well(report: ReplicaReport) -> Finding:
    """Its phase, and what troubles it."""
    status, name = report.status, report.status.replica
    if status.phase == "broken":
        cure = "restart it: its weights were applied by half"
        return Finding(AREA, name, "fail", "broken", cure)
    if report.trouble is not None:
        return Finding(AREA, name, "warn", one_line(report.trouble), "mend what it names")
    if report.last_problem is not None:
        found = f"{status.phase}; {problem_in_words(report.last_problem)}"
        return Finding(AREA, name, "ok", found)
    return Finding(AREA, name, "ok", f"{status.phase} at {status.url}")


def version(status: ReplicaStatus, *, newest: int) -> Finding:
    """How far behind the learner it is; one version may be under way."""
    name = f"{status.replica} weights"
    behind = newest - (-1 if status.version is None else status.version)
    if behind <= 1:
        return Finding(AREA, name, "ok", f"version {status.version} of {newest}")
    cure = "its log and the learner's say why it misses versions; learner.publish_timeout_s"
    return Finding(AREA, name, "warn", f"version {status.version}, wanted {newest}", cure)


def same_software(name: str, theirs: Mapping[str, str], *, ours: Mapping[str, str]) -> Finding:
    """Versions of what computes, on both machines."""
    differ = [
        f"{package} {theirs[package]} (here {ours[package]})"
        for package in theirs
        if package in ours and ours[package].partition("+")[0] != theirs[package].partition("+")[0]
    ]
    if not differ:
        shown = ", ".join(f"{package} {found}" for package, found in theirs.items())
        return Finding(AREA, f"{name} software", "ok", shown)
    cure = "run all of a fleet from one image, or from one lock"
    return Finding(AREA, f"{name} software", "warn", ", ".join(differ), cure)


# --- weights can travel -----------------------------------------------------------------------


def rehearsals(run: Run, seen: Seen) -> Iterator[Finding]:
    """Meet each replica as a learner would."""
    for number, replica in enumerate(seen.fleet.replicas, start=1):
        if replica.report is None:
            continue
        status = replica.status
        name = f"{status.replica} weight path"
        try:
            took_s, backend = asyncio.run(meet(run, status, epoch=seen.hold.epoch, number=number))
        except (ConfigError, TempSampError, httpx.HTTPError, OSError) as error:
            cure = (
                f"learner.host ({run.learner.host}) has to be an address of this machine that "
                "replicas reach, with its ports open to them; NCCL_SOCKET_IFNAME names the network"
            )
            found = one_line(str(error) or repr(error))
            yield Finding(AREA, name, "fail", found, cure)
            continue
        yield Finding(AREA, name, "ok", f"met over {backend} in {took(took_s)}")


async def _see(run: Run) -> Seen:
    at_s = time.time()
    found = await look(run, learner_url=url_of_learner(run.learner))
    async with opened(run) as broker:
        hold = await broker.fence.look()
    return Seen(fleet=found, hold=hold, at_s=at_s)


async def meet(run: Run, status: ReplicaStatus, *, epoch: int, number: int) -> tuple[float, str]:
    """A rehearsal with one replica: seconds, and over what.

    Raises:
        ConfigError: it does not know the token, or there is no GPU here.
        TempSampError: they cannot meet.
        httpx.HTTPError: it cannot be reached.
    """
    from common.weights.group import backend_of, versions
    from common.weights.sender import device_here, join_as_sender
    from common.weights.store import StoreServer

    device = device_here(run.rollout.device)
    token = run.shared.tokens.of("control")
    store = StoreServer(run.learner.host)
    world_size = 1 + status.num_workers
    request = JoinWeightGroup(
        epoch=max(1, epoch),
        generation=number,
        host=run.learner.host,
        port=store.port,
        secret=store.secret,
        backend=backend_of(device),
        versions=versions(device),
        first_rank=1,
        world_size=world_size,
        timeout_s=MEET_S,
        deadline_s=MEET_S,
        rehearsal=True,
    )

    def join() -> None:
        join_as_sender(
            store,
            host=run.learner.host,
            world_size=world_size,
            device=device,
            timeout_s=MEET_S,
            rehearsal=True,
        ).close()

    began_s = time.perf_counter()
    try:
        async with direct.async_client(timeout=2 * MEET_S) as client:
            await vouched(client, status.url, tokens=run.shared.tokens, role="control")
            asking = client.post(
                f"{status.url}/v1/weights/join",
                content=request.model_dump_json(),
                headers={"Content-Type": "application/json", **bearer(token)},
            )
            answer, _ = await asyncio.gather(asking, asyncio.to_thread(join))
    finally:
        store.close()
    if not answer.is_success:
        raise QueueError(f"{answer.url} gave {answer.status_code}: {detail_of(answer)}")
    return time.perf_counter() - began_s, request.backend
