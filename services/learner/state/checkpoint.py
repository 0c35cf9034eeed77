"""Checkpoints: model, optimizer, RNG and run state in one folder, a Hugging Face export beside.

    <run_dir>/checkpoints/step-000050/
        shards/         torch.distributed.checkpoint: model and optimizer, any number of ranks
        run_state.json  step, version, feed, intake, RNG: everything else a resumed run needs
        config.json     the resolved config, secrets masked
        hf/             the policy as a Hugging Face checkpoint, ready for rollout and evaluation
        adapter/        with [learner.lora]: what `hf/` has merged, as PEFT's files
        manifest.json   what has to be there (`manifest.py`)

`begin` copies (`copied.py`), a thread writes while the next steps train, `finish` makes it count: a
folder becomes visible by one rename once it is complete and on the disk, and only then are its
groups acknowledged in Redis (`saving.py`). A resumed run takes the newest whole checkpoint and puts
damaged ones aside.
"""

import datetime
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from torch.distributed.checkpoint.state_dict_saver import save as save_sharded

from common import config
from common.errors import CheckpointError, ConfigError, TempSampError
from common.logs import SAY_EVERY_S, NowAndThen
from common.model.checks import SETTINGS
from services.learner.feed import FeedState
from services.learner.intake import IntakeState
from services.learner.launch import OTHER_RANK_FAILED
from services.learner.model.policy import Policy
from services.learner.parallel import Ranks
from services.learner.state.best import Best, best_so_far, name_best
from services.learner.state.compatible import refuse_changes
from services.learner.state.copied import Copied, state_of
from services.learner.state.durable import sync, sync_tree
from services.learner.state.manifest import write_manifest
from services.learner.state.reading import list_checkpoints, list_damaged, loading, newest_whole

logger = logging.getLogger(__name__)

POLL_S = 0.02


class RunState(BaseModel):
    """What a resumed run needs beside tensors."""

    model_config = ConfigDict(extra="forbid")

    step: int
    """Optimizer steps done; also the policy version of the saved weights."""
    feed: FeedState
    intake: IntakeState
    ledger_bytes: int
    """Size of `ledger.jsonl` with everything that this state contains."""
    rng: str
    """State of torch's CPU generator, hex."""


@dataclass(frozen=True)
class _Write:
    """A checkpoint that is being written."""

    step: int
    confirm: Callable[[], None]
    whole: Callable[[], None]
    best: Best | None
    """When it was begun: a later version's checkpoint is not there yet."""
    seconds: "Future[float]"
    """What it took, on this rank."""


class Checkpoints:
    """The checkpoints of one run. Construct and call on every rank."""

    def __init__(
        self,
        run: config.Run,
        *,
        start: Path,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        ranks: Ranks,
    ) -> None:
        """`start`: folder of the model that the run began with."""
        self._run = run
        self._start = start
        self._policy = policy
        self._optimizer = optimizer
        self._ranks = ranks
        self._folder = run.learner.run_dir / "checkpoints"
        self._write: _Write | None = None
        self._writer = ThreadPoolExecutor(1, "checkpoint", _compute_on, (ranks.device,))
        # The thread's own: its collectives must not meet those of the steps.
        timeout = datetime.timedelta(seconds=run.learner.collective_timeout_s)
        self._group = dist.new_group(backend="gloo", timeout=timeout)
        self.last_write_s: float | None = None
        """Seconds that the last whole checkpoint took to be written."""

    def begin(
        self,
        state: RunState | None,
        *,
        confirm: Callable[[], None] = lambda: None,
        whole: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy what a checkpoint contains and have it written; a collective. None is under way.

        Args:
            state: rank 0's run state; the others pass None.
            confirm: rank 0: raises when the run is no longer ours; called now, and just before
                the rename.
            whole: rank 0: called by `finish` when nothing can take this checkpoint away any more.

        Raises:
            CheckpointError: it cannot be written; earlier ones are as they were.
        """
        assert self._write is None
        step = self._ranks.broadcast_json(state.step if state else None)
        partial = self._place(step, ".partial")
        with self._together(partial):
            if self._ranks.is_main:
                confirm()
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        dtype = getattr(torch, self._run.shared.dtype)
        copied = Copied.of(self._policy, self._optimizer, dtype=dtype, ranks=self._ranks)
        best = best_so_far(self._run.learner.run_dir) if self._run.learner.keep_best else None
        seconds = self._writer.submit(self._write_out, copied, partial, state)
        self._write = _Write(step, confirm, whole, best, seconds)

    def finish(self, *, wait: bool) -> None:
        """If one has been written: make it visible and drop what it replaces; a collective.

        Args:
            wait: until it has been, if one is under way; says so in the log.

        Raises:
            CheckpointError: it could not be written; earlier ones are as they were.
        """
        write = self._write
        if write is None or not self._is_written(write, wait=wait):
            return
        self._write = None
        # What failed on one rank's thread ends them all here.
        with self._together(self._place(write.step, ".partial")):
            self.last_write_s = write.seconds.result()
            if self._ranks.is_main:
                self._make_visible(write)

    def close(self) -> None:
        """When all else ends because something failed: what is being written counts if it can.

        Every rank waits for its thread, and rank 0's has succeeded only if all have.
        """
        write, self._write = self._write, None
        if write is not None:
            error = write.seconds.exception()
            try:
                if error is None and self._ranks.is_main:
                    self._make_visible(write)
            except (TempSampError, OSError) as unmoved:
                error = unmoved
            if error is not None:
                logger.warning("no checkpoint", extra={"step": write.step, "reason": str(error)})
                if self._ranks.is_main:
                    shutil.rmtree(self._place(write.step, ".partial"), ignore_errors=True)
        self._writer.shutdown()

    def restore(self) -> RunState | None:
        """Load the newest whole checkpoint into model and optimizer; None when there is none.

        Raises:
            CheckpointError: there are some, and none is whole, or what was written whole cannot be
                loaded.
            ConfigError: it was trained with other settings (`compatible.py`), or cannot be read.
        """
        found = None
        with self._together():
            if self._ranks.is_main and (found := newest_whole(self._folder)) is not None:
                refuse_changes(found / "config.json", self._run)
        name = self._ranks.broadcast_json(found.name if found else None)
        if name is None:
            return None
        folder = self._folder / name
        tensors = state_of(self._policy, self._optimizer)
        with self._together(), loading(folder):
            state = RunState.model_validate_json((folder / "run_state.json").read_bytes())
            load_sharded(tensors, checkpoint_id=folder / "shards")
        _, ours = get_state_dict(self._policy, self._optimizer)
        set_state_dict(
            self._policy,
            self._optimizer,
            model_state_dict=tensors["model"],
            optim_state_dict=ours | tensors["optimizer"],
            options=StateDictOptions(strict=True),
        )
        torch.set_rng_state(torch.tensor(list(bytes.fromhex(state.rng)), dtype=torch.uint8))
        logger.info("resumed", extra={"step": state.step, "path": str(folder)})
        return state

    def tidy(self) -> None:
        """Rank 0, once the run is ours: remove what a crash left half written."""
        for partial in self._folder.glob("step-*.partial"):
            logger.info("unfinished checkpoint removed", extra={"path": str(partial)})
            shutil.rmtree(partial)

    @contextmanager
    def _together(self, partial: Path | None = None) -> Iterator[None]:
        """A failure inside ends all ranks; a collective. Rank 0 ends with the error."""
        failure: TempSampError | ConfigError | None = None
        try:
            yield
        except (TempSampError, ConfigError) as error:
            failure = error
        except (OSError, SafetensorError, CheckpointException) as error:
            failure = CheckpointError(self._cannot_write(error))
        failed = torch.tensor([float(failure is not None)])
        if self._ranks.all_reduce_max(failed).item() == 0:
            return
        if not self._ranks.is_main:
            if failure is not None:
                logger.error("no checkpoint", extra={"reason": str(failure)})
            raise SystemExit(OTHER_RANK_FAILED)
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        raise failure or CheckpointError(
            "learner.run_dir: no checkpoint: another rank's log says why"
        )

    def _cannot_write(self, error: BaseException) -> str:
        if isinstance(error, CheckpointException):  # torch's writer hides the system's reason
            error = next((cause for cause, _ in error.failures.values()), error)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        free_mb = shutil.disk_usage(self._run.learner.run_dir).free / 1e6
        return (
            f"learner.run_dir: no checkpoint in {self._folder}: {reason} (found {free_mb:,.0f} MB "
            "free); earlier ones are whole: make room and resume (--resume); "
            "learner.keep_checkpoints says how many are kept"
        )

    def _drop_old(self, best: Best | None) -> None:
        """Rank 0: all but the newest ones, and the best one on held-out rows."""
        if best is not None:
            name_best(self._folder, best)
        kept = None if best is None else f"step-{best.step:06d}"
        for old in list_checkpoints(self._folder)[: -self._run.learner.keep_checkpoints]:
            if old.name != kept:
                shutil.rmtree(old)

    def _place(self, step: int, ending: str = "") -> Path:
        return self._folder / f"step-{step:06d}{ending}"

    def _is_written(self, write: _Write, *, wait: bool) -> bool:
        """Whether all ranks' threads are through, however they ended; a collective."""
        start, word = time.monotonic(), NowAndThen(first_s=SAY_EVERY_S)
        while True:
            missing = torch.tensor([float(not write.seconds.done())])
            if self._ranks.all_reduce_max(missing).item() == 0:
                return True
            if not wait:
                return False
            if word.is_due():
                facts = {"step": write.step, "waited_s": round(time.monotonic() - start)}
                logger.info("waiting for a checkpoint to be written", extra=facts)
            time.sleep(POLL_S)

    def _make_visible(self, write: _Write) -> None:
        """Rank 0: it is complete and on the disk."""
        write.confirm()
        final = self._place(write.step)
        shutil.rmtree(final, ignore_errors=True)
        self._place(write.step, ".partial").rename(final)
        sync(self._folder)
        self._drop_old(write.best)
        facts = {"step": write.step, "path": str(final), "write_s": write.seconds.result()}
        logger.info("checkpoint", extra=facts)
        write.whole()

    def _write_out(self, copied: Copied, partial: Path, state: RunState | None) -> float:
        """A thread of every rank; rank 0's, which alone has a `state`, is the last to end."""
        start = time.monotonic()
        save_sharded(copied.shards, checkpoint_id=partial / "shards", process_group=self._group)
        if state is not None:
            self._complete(partial, copied, state)
        return time.monotonic() - start

    def _complete(self, partial: Path, copied: Copied, state: RunState) -> None:
        """Rank 0: everything beside the shards, and all of it on the disk."""
        if (adapters := self._policy.adapters) is not None:
            adapters.save(partial / "adapter", copied.adapters, model=self._run.shared.model)
        self._policy.model.save_pretrained(partial / "hf", state_dict=copied.weights)
        name_dtype(partial / "hf", self._run.shared.dtype)
        carry_over(self._start, partial / "hf")
        (partial / "run_state.json").write_text(state.model_dump_json(), encoding="utf-8")
        (partial / "config.json").write_text(config.dump(self._run), encoding="utf-8")
        refuse_missing_shards(partial / "shards")
        write_manifest(partial)
        sync_tree(partial)


def refuse_missing_shards(folder: Path) -> None:
    """A checkpoint is what all ranks have written, not what rank 0 finds.

    Raises:
        OSError: the folder lacks a file that a rank says it wrote.
    """
    written = FileSystemReader(folder).read_metadata().storage_data.values()
    for name in sorted({info.relative_path for info in written}):
        if not (folder / name).is_file():
            raise OSError(f"{folder / name} of another rank is not there: is the folder shared?")


def _compute_on(device: torch.device) -> None:
    """A new thread would find itself on the first GPU, and take memory there."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def carry_over(start: Path, folder: Path) -> None:
    """Copy tokenizer, processor and generation settings from the start checkpoint to an export.

    Not its index of weights: the export has other files, and vLLM would look for those.
    """
    for pattern in SETTINGS:
        for file in start.glob(pattern):
            is_index = file.name.endswith(".safetensors.index.json")
            if not is_index and not (folder / file.name).exists():
                shutil.copy2(file, folder / file.name)


def name_dtype(export: Path, dtype: str) -> None:
    """Have an export's settings name the dtype of its tensors: transformers writes that of the
    model, whose masters are float32, and vLLM takes float32 for a wish to compute in float16."""
    path = export / "config.json"
    settings = json.loads(path.read_bytes())
    for part in (settings, *settings.values()):
        if isinstance(part, dict) and "dtype" in part:
            part["dtype"] = dtype
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def rng_state() -> str:
    """torch's CPU generator, as `RunState.rng` keeps it."""
    return bytes(torch.get_rng_state().tolist()).hex()


def refuse_existing(run_dir: Path) -> None:
    """A fresh run must not continue in the folder of an old one.

    Raises:
        ConfigError: there are checkpoints, be it damaged ones; names the folder and how to resume.
    """
    found = [*list_damaged(run_dir / "checkpoints"), *list_checkpoints(run_dir / "checkpoints")]
    if found:
        raise ConfigError(
            f"learner.run_dir: found {found[-1].name} in {run_dir}, wanted a folder without "
            "checkpoints: resume (--resume), or choose another run_dir"
        )
