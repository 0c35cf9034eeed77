"""The rollout engine: chat messages and frames in; token ids, logprobs and version spans out.

Wraps vLLM's AsyncLLM (internal API, pinned; `tests/contract` holds the contract). Everything else
of vLLM's — its HTTP server, chat parsing, frame sampling — is left out: ids go in and come out, so
what is trained on is exactly what was generated. Neighbours: `worker` and `app` ask for samples,
`weights` drives the transfer steps.
"""

import asyncio
import itertools
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from common.config import Rollout, Shared
from common.errors import EngineError
from common.messages import (
    ChatMessage,
    ClipRef,
    FinishReason,
    HeldWeights,
    Sample,
    Sampling,
    VersionSpan,
)
from common.model.expected import refuse_unfit_model
from common.model.folder import fetched
from common.video.frames import processor_metadata
from services.rollout import masks
from services.rollout.receiving.link import Action, WorkerLinks

INITIAL_VERSION = "default"
"""vLLM's name for the weights it loaded from disk: policy version 0 of ours."""
FORBIDDEN_LOGIT_BIAS = -100.0
"""Keeps a poor model from sampling `<|video_pad|>`, which no forward pass accepts in an answer."""


@dataclass(frozen=True)
class Generation:
    """Answers to one prompt."""

    prompt_token_ids: tuple[int, ...]
    """The expanded prompt: placeholders and timestamps included."""
    num_visual_tokens: int
    grid_thw: tuple[int, int, int]
    """Patch grid (time, height, width) before spatial merging."""
    samples: tuple[Sample, ...]
    texts: tuple[str, ...]
    """Answers without their stop token."""


class EngineDownError(EngineError):
    """The engine is still loading, or died: not the prompt's fault."""


class Engine:
    """One vLLM engine with its tokenizer."""

    def __init__(
        self,
        *,
        llm: Any,
        tokenizer: Any,
        model_config: Any,
        shared: Shared,
        links: WorkerLinks | None = None,
    ) -> None:
        self._llm = llm
        self._links = links or WorkerLinks(1)
        self._tokenizer = tokenizer
        self._shared = shared
        self._request_numbers = itertools.count()
        vision = model_config.vision_config
        self._patch = (vision.temporal_patch_size, vision.patch_size, vision.patch_size)
        self._merge: int = vision.spatial_merge_size
        self._video_token: int = model_config.video_token_id
        self._forbidden = [
            getattr(model_config, f"{name}_token_id")
            for name in ("video", "image", "vision_start", "vision_end")
        ]
        self._stop_tokens = _stop_tokens(llm, tokenizer)
        self._masked: bool = llm.model_config.return_sampling_mask

    @classmethod
    async def start(cls, shared: Shared, *, rollout: Rollout) -> Self:
        """Load the model in a thread; takes from seconds (tiny, CPU) to minutes.

        Raises:
            ConfigError: `shared.model` is not there or no whole model.
            EngineError: vLLM could not load it.
        """
        links = WorkerLinks(rollout.tensor_parallel)
        await links.listen()
        try:
            engine = await asyncio.to_thread(cls._load, shared, rollout, links)
            await engine._connect_workers()
        except BaseException:
            links.close()
            raise
        return engine

    @classmethod
    def _load(cls, shared: Shared, rollout: Rollout, links: WorkerLinks) -> Self:
        # Before the environment is prepared: the engine that loads has no business with a hub.
        folder = fetched(shared.model, knob="shared.model").path
        _prepare_environment(rollout)
        refuse_unfit_model(folder)
        from transformers import AutoConfig, AutoTokenizer
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            llm = AsyncLLM.from_engine_args(_engine_arguments(folder, shared, rollout))
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model_config = AutoConfig.from_pretrained(folder)
        except (OSError, RuntimeError, ValueError) as error:
            why = masks.explained(error, shared=shared)
            raise EngineError(f"cannot load {shared.model} (shared.model): {why}") from error
        return cls(
            llm=llm, tokenizer=tokenizer, model_config=model_config, shared=shared, links=links
        )

    async def _connect_workers(self) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        info = {"path": os.fspath(self._links.path)}
        await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=info))

    @staticmethod
    def abandon_loading() -> NoReturn:
        """End this process while `start` is at work: a load cannot be interrupted, and a clean end
        would wait for it. Nothing is held yet."""
        for child in multiprocessing.active_children():
            child.terminate()
        os._exit(0)

    async def generate(
        self,
        messages: Sequence[ChatMessage],
        *,
        clip: ClipRef,
        frames: npt.NDArray[np.uint8],
        num_samples: int,
        sampling: Sampling,
    ) -> Generation:
        """Sample answers.

        Args:
            frames: [F, H, W, 3] uint8, what `ClipLoader.load(clip)` returns.

        Raises:
            EngineError: the prompt cannot be used, for example because it is too long, or cannot
                be sampled as it is asked (`masks.parameters`).
            EngineDownError: the engine died.
        """
        prompt_ids = self._encode_prompt(messages)
        grid = self._grid(frames)
        self._refuse_overlong(len(prompt_ids), grid)
        parameters = self._parameters(sampling, num_samples=num_samples)
        prompt = {
            "prompt_token_ids": prompt_ids,
            "multi_modal_data": {"video": [(frames, processor_metadata(clip))]},
            "mm_processor_kwargs": {"do_resize": False},
        }
        output = await self._run(prompt, parameters)
        samples = tuple(self._sample(item) for item in output.outputs)
        return Generation(
            prompt_token_ids=tuple(output.prompt_token_ids),
            num_visual_tokens=output.prompt_token_ids.count(self._video_token),
            grid_thw=grid,
            samples=samples,
            texts=tuple(self.decode(sample.token_ids) for sample in samples),
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of an answer, without the stop token."""
        kept = [token for token in token_ids if token not in self._stop_tokens]
        return str(self._tokenizer.decode(kept, skip_special_tokens=False))

    def token_ends(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """Characters of `decode(token_ids)` up to and with each token.

        A character of several tokens counts with its last one. Decoding as a stream is linear; 2048
        tokens take about a millisecond.
        """
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=False)
        pieces = (
            None
            if token in self._stop_tokens
            else stream.step(self._tokenizer.backend_tokenizer, token)
            for token in token_ids
        )
        return tuple(itertools.accumulate(len(piece or "") for piece in pieces))

    def encode_answer(self, text: str) -> tuple[int, ...]:
        """Tokens of a given answer, closed by the stop token, as injected samples carry them."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return (*ids, self._stop_tokens[0])

    async def transfer(self, action: Action, body: BaseModel | None = None) -> HeldWeights:
        """Have all workers join, receive or leave, beside generation; see `WorkerLinks.call`."""
        return await self._links.call(action, body)

    async def apply_weights(self, version: int) -> float:
        """Switch to the received weights: running requests go on under the new version.

        Pausing with `clear_cache` drops keys and values and encoder outputs of the old weights;
        with a stale cache answers differ from the policy by up to 8 nats.

        Returns:
            Seconds in which nothing was generated, from asking for the pause on.

        Raises:
            Exception: vLLM passes worker errors on as such. Generation stays paused: a worker may
                have loaded half of the weights.
        """
        started = time.monotonic()
        # Not `pause_generation`: that sleeps 20 ms for the sake of callers who read outputs, and
        # clears a cache of the front end that we do not have.
        core = self._llm.engine_core
        await core.pause_scheduler_async(mode="keep", clear_cache=True)
        await self._llm.start_weight_update()
        await self._llm.finish_weight_update(str(version))
        await core.resume_scheduler_async()
        return time.monotonic() - started

    async def check_health(self) -> None:
        """Raises when the engine process died."""
        await self._llm.check_health()

    def shutdown(self) -> None:
        """End the engine process."""
        self._links.close()
        self._llm.shutdown()

    def _parameters(self, sampling: Sampling, *, num_samples: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=num_samples,
            max_tokens=sampling.max_tokens,
            logprobs=0,
            logit_bias=dict.fromkeys(self._forbidden, FORBIDDEN_LOGIT_BIAS),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **masks.parameters(sampling, masked=self._masked),
        )

    def _sample(self, output: Any) -> Sample:
        token_ids = tuple(output.token_ids)
        chosen = zip(output.logprobs, token_ids, strict=True)
        return Sample(
            token_ids=token_ids,
            logprobs=tuple(min(0.0, entry[token].logprob) for entry, token in chosen),
            version_spans=tuple(
                VersionSpan(version=_version(span.version), start=span.start, end=span.end)
                for span in output.weight_versions
            ),
            finish_reason=_FINISH[output.finish_reason],
            provenance="policy",
            kept=masks.kept_tokens(output, forbidden=self._forbidden) if self._masked else None,
        )

    async def _run(self, prompt: dict[str, Any], parameters: Any) -> Any:
        from vllm.v1.engine.exceptions import EngineDeadError

        number = next(self._request_numbers)
        output = None
        try:
            async for latest in self._llm.generate(prompt, parameters, request_id=f"r{number}"):
                output = latest
        except ValueError as error:
            raise EngineError(f"vLLM refused the prompt: {error}") from error
        except (EngineDeadError, RuntimeError) as error:
            raise EngineDownError(f"vLLM failed: {error}") from error
        if output is None:
            raise EngineError("vLLM ended the request without an answer")
        return output

    def _encode_prompt(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Chat template of the checkpoint, no system message added, an empty think block where the
        template knows one (SPEC A5)."""
        text = self._tokenizer.apply_chat_template(
            [message.model_dump() for message in messages],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        count = ids.count(self._video_token)
        if count != 1:
            raise EngineError(f"the chat template made {count} video placeholders, wanted 1")
        return ids

    def _grid(self, frames: npt.NDArray[np.uint8]) -> tuple[int, int, int]:
        num_frames, height, width, _ = frames.shape
        grid = tuple(
            size // p for size, p in zip((num_frames, height, width), self._patch, strict=True)
        )
        return grid[0], grid[1], grid[2]

    def _refuse_overlong(self, num_text_tokens: int, grid: tuple[int, int, int]) -> None:
        visual = grid[0] * grid[1] * grid[2] // self._merge**2
        if num_text_tokens + visual > self._shared.max_prompt_tokens:
            raise EngineError(
                f"prompt of {num_text_tokens} text and {visual} visual tokens, wanted at most "
                f"{self._shared.max_prompt_tokens} (shared.max_prompt_tokens; fewer or smaller "
                "frames: shared.video)"
            )


def _prepare_environment(rollout: Rollout) -> None:
    """vLLM reads these at import; a value set outside wins."""
    settings = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # A forked process counts plugins as loaded: it would neither end with this one nor hold its
        # GPU (`weight_engine.register`). On CPU vLLM spawns anyway.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # vLLM 0.32 takes FlashInfer's sampler without looking for the nvcc that it compiles with:
        # the first batch with top_p < 1 or a top_k would end the engine where there is none.
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
    }
    if rollout.device == "cpu":
        settings |= {
            "VLLM_CPU_CI_ENV": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(rollout.cpu_threads),
            "VLLM_HOST_IP": "127.0.0.1",
            # Without compilation of the model, what is left to compile is one comparison of log-
            # probabilities, and that would need a C++ compiler on the machine.
            "TORCHDYNAMO_DISABLE": "1",
            # Only lets the worker share the engine's process, which still is not this one: on CPU
            # vLLM otherwise insists on worker processes, to bind OpenMP threads for us.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # The engine keeps what it frees: frames and features come and go with each prompt, and
            # fresh pages for them from the kernel took a tenth of a step.
            "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
            "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
        }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _engine_arguments(folder: Path, shared: Shared, rollout: Rollout) -> Any:
    from vllm.config import WeightTransferConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    from services.rollout.weight_engine import BACKEND, STAGING

    return AsyncEngineArgs(
        model=os.fspath(folder),
        dtype=shared.dtype,
        seed=shared.seed,
        enforce_eager=rollout.device == "cpu",
        # vLLM 0.32 dies on CPU when a request with a seed is prefilled in two pieces (it rewinds
        # the generator by an offset that CPU generators do not have).
        enable_chunked_prefill=rollout.device != "cpu",
        max_model_len=rollout.max_model_len,
        max_num_seqs=rollout.max_num_seqs,
        max_num_batched_tokens=rollout.max_num_batched_tokens,
        kv_cache_memory_bytes=rollout.kv_cache_bytes,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        tensor_parallel_size=rollout.tensor_parallel,
        # One worker lives in the engine's process: in a process of its own it would wait for work
        # in a spin.
        distributed_executor_backend="uni" if rollout.tensor_parallel == 1 else "mp",
        limit_mm_per_prompt={"video": 1, "image": 0},
        # Pausing clears the engine's half of this cache and not the front end's, which would then
        # send references to clips that are gone.
        mm_processor_cache_gb=0,
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        additional_config={STAGING: rollout.weight_staging},
        enable_log_requests=False,
        disable_log_stats=True,
        **masks.engine_settings(shared, rollout),
    )


def _stop_tokens(llm: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end an answer; the tokenizer's own comes first: it closes injected answers."""
    generation = llm.model_config.try_get_generation_config().get("eos_token_id", [])
    others = [generation] if isinstance(generation, int) else list(generation)
    return tuple(dict.fromkeys([tokenizer.eos_token_id, *others]))


_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort"}


def _version(name: str) -> int:
    return 0 if name == INITIAL_VERSION else int(name)
