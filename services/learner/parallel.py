"""Ranks of the learner: `start_ranks(device) → Ranks`, small collectives, `shard_model(policy)`.

`launch`, or torchrun, starts one process per rank; without them the same code runs as a single
rank. `train.py`, `publish.py` and `checkpoint.py` talk through `Ranks`; nothing is pickled. A
signal to end is recorded by whichever rank it reaches, and travels with the next collective
(`StopSignal`).
"""

import contextlib
import datetime
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor

from common.errors import ConfigError
from common.logs import SAY_EVERY_S, speaking
from services.learner.launch import LAUNCHER, OTHER_RANK_FAILED
from services.learner.model.policy import Policy

logger = logging.getLogger(__name__)

LAUNCHER_POLL_S = 1.0
BROKEN_COLLECTIVE_S = 1.0
"""A rank whose collective breaks waits so long: most often another rank has died, and who started
both ends this one without a word."""
MEETING = ("MASTER_ADDR", "MASTER_PORT")
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""Host tensors (JSON, statistics) go over gloo everywhere."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the learner's processes."""

    rank: int
    world_size: int
    device: torch.device
    """Where this rank computes."""
    mesh: DeviceMesh
    """(world_size,), or (copies, ranks that share one) when not all share one."""
    store: Store | None = None
    """Of all ranks; None for a single one."""

    @property
    def is_main(self) -> bool:
        """Whether this rank does what is done once: Redis, HTTP, files, log lines."""
        return self.rank == 0

    def broadcast_json(self, value: Any) -> Any:
        """Rank 0's value on every rank; anything JSON can hold. The others' argument is ignored."""
        body = json.dumps(value).encode() if self.is_main else b""
        length = torch.tensor([len(body)])
        dist.broadcast(length, src=0)
        bytes_N = torch.empty(int(length), dtype=torch.uint8)
        if self.is_main:
            bytes_N = torch.frombuffer(bytearray(body), dtype=torch.uint8)
        dist.broadcast(bytes_N, src=0)
        return json.loads(bytes_N.numpy().tobytes())

    def gather_json(self, value: Any) -> list[Any]:
        """Every rank's value on every rank, in their order; anything JSON can hold."""
        body = json.dumps(value).encode()
        lengths = torch.zeros(self.world_size, dtype=torch.int64)
        lengths[self.rank] = len(body)
        dist.all_reduce(lengths)
        ends = lengths.cumsum(0).tolist()
        bodies_N = torch.zeros(ends[-1], dtype=torch.uint8)
        bodies_N[ends[self.rank] - len(body) : ends[self.rank]] = torch.frombuffer(
            bytearray(body), dtype=torch.uint8
        )
        dist.all_reduce(bodies_N)
        starts = [0, *ends[:-1]]
        whole = bodies_N.numpy().tobytes()
        return [json.loads(whole[start:end]) for start, end in zip(starts, ends, strict=True)]

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Element-wise sum over ranks, in a new tensor on the host."""
        return _all_reduced(tensor, dist.ReduceOp.SUM)

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """Element-wise maximum over ranks, in a new tensor on the host."""
        return _all_reduced(tensor, dist.ReduceOp.MAX)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.all_reduce_sum(torch.zeros(1))

    def close(self) -> None:
        """Leave the process group."""
        dist.destroy_process_group()

    def leave(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """As `__exit__`, when all else is closed: one of several ranks ends here, unless it fails.

        The first rank that fails goes on to its last words. The others fail because their
        collectives break: each says so in a line, and ends with `OTHER_RANK_FAILED`.
        """
        if self.world_size == 1:
            self.close()
        elif kind is None or (isinstance(error, SystemExit) and error.code == 0):
            with contextlib.suppress(RuntimeError):  # rank 0 failed, and says so itself
                self.barrier()
            _end_here(0)
        elif isinstance(error, SystemExit):
            _end_here(error.code if isinstance(error.code, int) else 1)
        elif isinstance(error, Exception) and not self._is_first_to_fail(error):
            facts = {"rank": self.rank, "error": f"{kind.__name__}: {str(error)[:300]}"}
            logger.warning("this rank ends because another one has failed", extra=facts)
            _end_here(OTHER_RANK_FAILED)
        else:
            self.close()

    def _is_first_to_fail(self, error: Exception) -> bool:
        if type(error) is RuntimeError or isinstance(error, dist.DistError):
            time.sleep(BROKEN_COLLECTIVE_S)
        assert self.store is not None
        life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        own = str(self.rank)
        try:
            first = self.store.compare_set(f"first to fail/{life}", "", own)
        except RuntimeError:  # so who hosted it has gone first
            return False
        return bool(first == own.encode())


def _end_here(code: int) -> NoReturn:
    """Leave at once.

    Now and then a rank is aborted while two gloo ranks take their groups down ("terminate called
    without an active exception"; once in some 40 runs under load), and a run that has saved
    everything would have failed.
    """
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


class StopSignal:
    """SIGTERM or SIGINT on any rank: recorded, told to the others, obeyed between two steps.

    The launcher passes a signal on to all of its ranks, and a terminal sends Ctrl-C to them beside
    it: a second one means nothing.
    """

    def __init__(self) -> None:
        self._received: str | None = None
        self._others = False
        self._said = False

    @property
    def asked(self) -> bool:
        """Whether to end with a checkpoint; on rank 0, as far as the ranks have agreed."""
        if self._received is not None and not self._said:
            # Not in the handler: it may have interrupted a log line.
            logger.info("%s: stopping with a checkpoint", self._received)
            self._said = True
        return self._others or self._received is not None

    def agree(self, ranks: Ranks) -> bool:
        """Whether any rank was asked; a collective.

        A rank that waits inside a collective gets its signal when that ends.
        """
        if ranks.world_size > 1:
            before, seen = self.asked, torch.tensor([float(self.asked)])
            self._others = bool(ranks.all_reduce_max(seen).item())
            if self._others and not before:
                logger.info("another rank was signalled: stopping with a checkpoint")
        return self.asked

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Signals are recorded inside."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, self._record) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _record(self, number: int, _frame: FrameType | None) -> None:
        self._received = signal.Signals(number).name


def will_be_main() -> bool:
    """Whether this process will be rank 0: known before the ranks have met, which may take long."""
    return not dist.is_torchelastic_launched() or os.environ["RANK"] == "0"


def start_ranks(
    device: str, *, timeout_s: float, shard_within: Literal["all", "node"] | int = "all"
) -> Ranks:
    """Join the process group that the environment describes, or be the only rank.

    Args:
        device: `cpu` or `cuda`.
        timeout_s: deadline of each collective; a rank that misses it fails with an error.
        shard_within: which ranks share one copy of what is trained; `learner.shard_within`.

    Raises:
        ConfigError: the ranks cannot be divided so.
    """
    timeout = datetime.timedelta(seconds=timeout_s)
    store = None
    if dist.is_torchelastic_launched():
        launcher = int(os.environ.get(LAUNCHER, os.getppid()))
        threading.Thread(target=_end_with, args=(launcher,), daemon=True).start()
        facts = {name.lower(): os.environ[name] for name in ("WORLD_SIZE", *MEETING)}
        with said_while_waiting("waiting for the other ranks", **facts), _ctrl_c_ends_at_once():
            store, rank, world_size = next(rendezvous("env://", timeout=timeout))
            dist.init_process_group(
                BACKENDS[device],
                store=PrefixStore("default_pg", store),
                rank=rank,
                world_size=world_size,
                timeout=timeout,
            )
    else:
        dist.init_process_group(
            BACKENDS[device], store=HashStore(), rank=0, world_size=1, timeout=timeout
        )
    rank, world_size = dist.get_rank(), dist.get_world_size()
    place = torch.device(device)
    if device == "cuda":
        place = torch.device("cuda", dist.get_node_local_rank(fallback_rank=0))
        torch.cuda.set_device(place)
    if rank != 0:
        logging.getLogger().setLevel(logging.WARNING)
    sharing = _ranks_of_a_copy(shard_within, world_size)
    if sharing == world_size:
        mesh = init_device_mesh(device, (world_size,))
    else:
        shape = (world_size // sharing, sharing)
        mesh = init_device_mesh(device, shape, mesh_dim_names=("replicate", "shard"))
    return Ranks(rank, world_size, place, mesh, store)


def _ranks_of_a_copy(shard_within: Literal["all", "node"] | int, world_size: int) -> int:
    """The ranks of a node are numbered in a row, so each copy stays on as few as can be."""
    known = {"all": world_size, "node": int(os.environ.get("LOCAL_WORLD_SIZE", world_size))}
    sharing = shard_within if isinstance(shard_within, int) else known[shard_within]
    if world_size % sharing:
        raise ConfigError(
            f"learner.shard_within: found {shard_within!r} ({sharing} ranks for a copy) with "
            f"{world_size} ranks, wanted a number that divides them"
        )
    return sharing


@contextlib.contextmanager
def _ctrl_c_ends_at_once() -> Iterator[None]:
    """As SIGTERM does: inside C++ no Python runs to raise KeyboardInterrupt."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def said_while_waiting(event: str, **facts: object) -> Iterator[None]:
    """A log line every `SAY_EVERY_S` while a call that may wait inside C++ has not returned."""

    def say(_seconds: float) -> None:
        logger.warning(event, extra=facts)

    with speaking(say, every_s=SAY_EVERY_S):
        yield


def _end_with(launcher: int) -> None:
    """A rank whose launcher was killed would train on beside the one that is started next."""
    while os.getppid() == launcher:
        time.sleep(LAUNCHER_POLL_S)
    logger.error("the launcher is gone, this rank ends too", extra={"launcher_pid": launcher})
    os._exit(1)


def shard_model(policy: Policy, *, ranks: Ranks, compute_dtype: torch.dtype) -> Policy:
    """Spread the trained parameters over the ranks' mesh with FSDP2, in place, in their dtype.

    One shard unit per decoder layer (and tower block, if trained) and one for the rest. A frozen
    tower is replicated instead: ranks meet cached clips at different times, so its calls are not in
    step. Frozen weights below adapters are sharded, in the compute dtype where that loses nothing.
    Gradients are summed, not averaged, because the loss has a global denominator already.

    A single rank whose parameters are in the compute dtype has nothing to share or to cast, and is
    left as it is.
    """
    kept = {parameter.dtype for parameter in policy.parameters()}
    if ranks.world_size == 1 and kept == {compute_dtype}:
        return policy
    frozen = set(policy.tower.parameters()) if policy.freeze_vision else set()
    for parameter in frozen:
        parameter.data = parameter.data.to(compute_dtype)
    if policy.adapters is not None:
        _lower_losslessly(set(policy.parameters()) - frozen, compute_dtype)
    blocks = () if policy.freeze_vision else policy.tower_blocks
    precision = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    for module in (*policy.decoder_layers, *blocks, policy):
        fully_shard(module, mesh=ranks.mesh, mp_policy=precision, ignored_params=frozen)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum
    policy.register_forward_hook(_reshard_unless_training)
    return policy


def _lower_losslessly(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
    """Keep what is not trained in `dtype` if that is the same numbers; a bfloat16 checkpoint is."""
    for parameter in parameters:
        if parameter.is_meta:  # `model.start` has seen to it
            continue
        lower = parameter.data.to(dtype)
        if not parameter.requires_grad and torch.equal(lower.to(parameter.dtype), parameter.data):
            parameter.data = lower


def reset_sharding(policy: Policy) -> None:
    """After an error inside forward or backward of the only rank: FSDP as between two steps.

    What backward's own end would have done; torch has no public name for it (pinned, and tested).
    Half-made gradients appear: clear them afterwards. With several ranks it would be a collective.
    """
    if isinstance(policy, FSDPModule):
        policy._get_fsdp_state()._root_post_backward_final_callback()


def _reshard_unless_training(policy: Policy, *_: object) -> None:
    """With no backward to come, FSDP would keep the root gathered: a copy that goes stale."""
    if not torch.is_grad_enabled():
        assert isinstance(policy, FSDPModule)
        policy.reshard()


def _all_reduced(tensor: Tensor, operation: "dist.ReduceOp.RedOpType") -> Tensor:
    reduced = tensor.detach().cpu().clone()
    dist.all_reduce(reduced, op=operation)
    return reduced


@torch.no_grad()
def whole_weights(
    policy: Policy, *, dtype: torch.dtype, ranks: Ranks
) -> Iterator[tuple[str, Tensor | None]]:
    """Each parameter under its Hugging Face name, whole; a collective: every rank runs to the end.

    Rank 0 gets contiguous host tensors in `dtype`, with adapters merged and in memory of their own,
    the others None.
    """
    for name, parameter in policy.named_weights():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if policy.adapters is not None and name in policy.adapters:
            whole = policy.adapters.merged(name, whole)
        own = whole.detach().to("cpu", dtype, copy=True).contiguous() if ranks.is_main else None
        yield name, own
