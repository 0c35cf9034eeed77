"""vLLM worker side of a weight transfer: the `tempsamp` weight-transfer engine.

`register()` is found by vLLM through the entry point `vllm.general_plugins` and runs in each of its
processes. The engine receives a whole verified stream into host memory first and only then touches
the model: a transfer that breaks leaves the old weights serving. Neighbours: `common.weight_group`
(the wire), `services.rollout.engine` (calls these steps on all workers).
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

from common.errors import WeightError
from common.messages import TensorSlice
from common.weight_group import Layout, WeightGroup, connect_store, receive
from services.rollout.gpu import keep_claimed

BACKEND = "tempsamp"


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
class GroupInfo(WeightTransferInitInfo):
    """How a worker joins a generation; `first_rank` is the rank of this replica's first worker."""

    host: str
    port: int
    first_rank: int
    world_size: int
    timeout_s: float


@dataclass
class StreamInfo(WeightTransferUpdateInfo):
    """The tensors that are about to come."""

    slices: list[dict[str, Any]]
    bucket_bytes: int


class TempSampWeightTransferEngine(WeightTransferEngine[GroupInfo, StreamInfo]):
    """join → (receive → apply)*; one instance in each vLLM worker."""

    init_info_cls = GroupInfo
    update_info_cls = StreamInfo

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._group: WeightGroup | None = None
        self._layout: Layout | None = None
        self._stream_N = torch.empty(0, dtype=torch.uint8)

    def init_transfer_engine(self, init_info: GroupInfo) -> None:
        """Join a generation, leaving the previous one."""
        self.shutdown()
        parallel = self.parallel_config
        worker = parallel.data_parallel_index * parallel.world_size + parallel.rank
        store = connect_store(init_info.host, port=init_info.port, timeout_s=init_info.timeout_s)
        self._group = WeightGroup.join(
            store,
            rank=init_info.first_rank + worker,
            world_size=init_info.world_size,
            timeout_s=init_info.timeout_s,
            device=self.device.type,
        )

    def start_weight_update(self) -> None:
        """Forget an earlier stream that was received but never applied."""
        self._layout = None

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive and verify a stream; the model is not touched yet."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: StreamInfo) -> None:
        """See `update_weights`."""
        if self._group is None:
            raise WeightError("no weight group: join one before an update")
        slices = [TensorSlice.model_validate(item) for item in update_info.slices]
        layout = Layout.of(slices, bucket_bytes=update_info.bucket_bytes)
        if self._stream_N.numel() != layout.num_bytes:
            self._stream_N = torch.empty(layout.num_bytes, dtype=torch.uint8)
        receive(self._group, layout=layout, stream_N=self._stream_N, device=self.device.type)
        self._layout = layout

    def finish_weight_update(self) -> None:
        """Load the verified stream into the model, through vLLM's own checkpoint loaders."""
        if self._layout is None:
            raise WeightError("nothing received: update before finish")
        # Fused and tied tensors are re-processed layer by layer, as at start-up; plain load_weights
        # on a running model would skip that.
        from vllm.model_executor.model_loader.reload import (
            finalize_layerwise_reload,
            initialize_layerwise_reload,
        )

        initialize_layerwise_reload(self.model)
        self.model.load_weights(self._layout.views(self._stream_N))
        finalize_layerwise_reload(self.model, self.model_config)
        self._repack_tied_heads()
        self._layout = None

    def _repack_tied_heads(self) -> None:
        """A head tied to the embedding loads no weights of its own, so the reload passes it by; but
        on CPU it multiplies with a packed copy, which would stay that of the old weights."""
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Leave the group; the weights stay."""
        if self._group is not None:
            self._group.close()
            self._group = None
