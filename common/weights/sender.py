"""The sender's end of a meeting: rank 0 of a weight group, in a learner or whoever rehearses one.

    store = StoreServer(host); tell the others; group = join_as_sender(store, host=host, …)

The receivers' end is `common.weights.receiver`.
"""

import torch

from common.errors import ConfigError
from common.weights.group import WeightGroup
from common.weights.receiver import REHEARSAL_BYTES
from common.weights.store import StoreServer


def join_as_sender(
    store: StoreServer,
    *,
    host: str,
    world_size: int,
    device: torch.device,
    timeout_s: float,
    rehearsal: bool,
) -> WeightGroup:
    """Meet the receivers; in a rehearsal they get one small message.

    Args:
        store: listens already, and the receivers were told of it.
        host: of the store.
        world_size: this process and all receivers.
        device: of the buckets; decides the backend.
        timeout_s: for all to be there, and of each transfer afterwards.

    Raises:
        GroupError: not all of them came in time.
    """
    group = WeightGroup.join(
        store.store(timeout_s=timeout_s),
        host=host,
        port=store.port,
        rank=0,
        world_size=world_size,
        device=device,
        timeout_s=timeout_s,
        deadline_s=timeout_s,
    )
    if rehearsal:
        group.broadcast(torch.zeros(REHEARSAL_BYTES, dtype=torch.uint8, device=device))
    return group


def device_here(kind: str) -> torch.device:
    """The device that receivers of a kind (`cpu`, `cuda`) are met from.

    Raises:
        ConfigError: there is no GPU on this machine.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError("found no GPU here, wanted one for NCCL: ask from the learner's machine")
    return torch.device(kind)
