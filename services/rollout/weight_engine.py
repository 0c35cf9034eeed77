"""vLLM worker side of a weight transfer: the `tempsamp` weight-transfer engine.

`register()` is found by vLLM through the entry point `vllm.general_plugins` and runs in each of its
processes. Streams arrive in a thread of the worker (`receiving.worker`), beside generation; vLLM's
loop is entered for nothing but `finish_weight_update`, which loads a whole verified version into
the model. Neighbours: `common.weights` (the wire), `services.rollout.engine` (calls these steps).
"""

import multiprocessing
import os
import threading
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.v1.core.sched import output as scheduler_output

from common.weights.layout import aligned
from common.weights.receiver import Receiver
from services.rollout.gpu import keep_claimed
from services.rollout.receiving.reloading import Reloading
from services.rollout.receiving.worker import serve_link

BACKEND = "tempsamp"
STAGING = "tempsamp_weight_staging"
"""In vLLM's additional_config: `rollout.weight_staging`."""


def register() -> None:
    """Make `WeightTransferConfig(backend="tempsamp")` known in this process. Idempotent."""
    if BACKEND in WeightTransferEngineFactory._registry:
        return
    WeightTransferEngineFactory.register_engine(BACKEND, TempSampWeightTransferEngine)
    scheduler_output.strip_covered_mm_data = _keep_clips
    if (parent := multiprocessing.parent_process()) is not None:
        keep_claimed()
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    """vLLM's engine process outlives a server that was killed, and keeps its memory for ever."""
    parent.join()
    os._exit(1)


def _keep_clips(
    features: list[Any], _num_computed_tokens: int, uses_mrope: bool = False
) -> list[Any]:
    """Replaces a function of vLLM 0.32's scheduler, which takes the pixels out of a request whose
    clip lies in the prefix cache. Pausing for new weights drops that cache and prefills running
    requests again, and then the worker, left without pixels, dies."""
    return features


@dataclass
class LinkInfo(WeightTransferInitInfo):
    """Where the replica listens."""

    path: str


@dataclass
class NoInfo(WeightTransferUpdateInfo):
    """Updates do not come through vLLM."""


class TempSampWeightTransferEngine(WeightTransferEngine[LinkInfo, NoInfo]):
    """Receives beside generation, applies inside it; one instance in each vLLM worker."""

    init_info_cls = LinkInfo
    update_info_cls = NoInfo

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        place = self.vllm_config.additional_config[STAGING]
        on_device = place == "device" and self.device.type == "cuda"
        # Allocated before vLLM measures what is left for its KV cache.
        reserve_bytes = _staging_bytes(self.model) * self._shards if on_device else 0
        self._receiver = Receiver(self.device, place=place, reserve_bytes=reserve_bytes)
        self._reloading = Reloading(self.model)

    @property
    def _shards(self) -> int:
        """A worker holds its part of the model; what travels is the whole of it."""
        return int(self.parallel_config.tensor_parallel_size)

    def init_transfer_engine(self, init_info: LinkInfo) -> None:
        """Listen to the replica from now on."""
        parallel = self.parallel_config
        worker = parallel.data_parallel_index * parallel.world_size + parallel.rank
        serve_link(init_info.path, worker=worker, receiver=self._receiver)

    def start_weight_update(self) -> None:
        """Part of vLLM's protocol; nothing to prepare."""

    def receive_weights(self, update_info: NoInfo) -> None:
        """Part of vLLM's protocol; weights come through the link."""
        raise NotImplementedError

    def finish_weight_update(self) -> None:
        """Load the verified streams into the model, through vLLM's own checkpoint loaders."""
        # Fused and tied tensors are re-processed layer by layer, as at start-up; plain load_weights
        # on a running model would skip that.
        from vllm.model_executor.model_loader.reload import (
            finalize_layerwise_reload,
            initialize_layerwise_reload,
        )

        load = self._reloading.of(self._receiver)
        for module in load.modules:
            initialize_layerwise_reload(module)
        self.model.load_weights(load.weights)
        for module in load.modules:
            finalize_layerwise_reload(module, self.model_config)
        self._reloading.done(load)
        self._repack_tied_heads()
        if self.device.type == "cuda":
            # Staging may be written to once this has returned.
            torch.cuda.synchronize(self.device)

    def _repack_tied_heads(self) -> None:
        """A head tied to the embedding loads no weights of its own, so the reload passes it by; but
        on CPU it multiplies with a packed copy, which would stay that of the old weights."""
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Leave the group; the weights stay."""
        self._receiver.abandon()


def _staging_bytes(model: torch.nn.Module) -> int:
    """Room for every parameter, as much as the whole stream takes at the most."""
    return sum(aligned(p.numel() * p.element_size()) for p in model.parameters())
