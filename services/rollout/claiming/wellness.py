"""Whose fault a failure is: the prompt's, or this replica's own, which then steps aside.

A replica that fails in milliseconds wins every race for prompts against busy healthy ones. So what
is not the prompt's fault does not count against it, and a replica that is sick, or may be, claims
nothing until a check and a pause have passed. `worker` asks here before each claim and tells what
became of it.
"""

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from common.config import Video
from common.errors import RewardError, TempSampError, VideoError
from services.rollout.engine import EngineDownError

logger = logging.getLogger(__name__)

DOUBTFUL_ROW = 3
"""So many failures one after the other speak about the replica more than about the prompts."""
FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 60.0

Check = Callable[[], Awaitable[None]]
"""Raises while the replica is not well."""


class ReplicaSickError(TempSampError):
    """This replica cannot get well by itself: its process ends, with a non-zero exit code."""


@dataclass(frozen=True)
class Fault:
    """Something wrong with this replica."""

    trouble: str
    check: Check
    is_crash: bool = False
    """The engine failed: the prompt may have killed it, as it may kill others."""


@dataclass
class Doubts:
    """Failures that count only once the replica has proven to be well."""

    row: list[str] = field(default_factory=list)
    """Entry ids failed since the last answer."""
    times: Counter[str] = field(default_factory=Counter)

    def add(self, entry_id: str) -> None:
        """A failure that may be the replica's."""
        self.row.append(entry_id)
        self.times[entry_id] += 1

    def settle(self) -> tuple[list[str], list[str]]:
        """After an answer: which of them were the prompts' fault, and which get another try.

        After a long row the replica was sick, and gets what it failed at back, but once only.
        """
        was_sick = len(self.row) >= DOUBTFUL_ROW
        forgiven = [entry for entry in self.row if was_sick and self.times[entry] == 1]
        confirmed = [entry for entry in self.row if entry not in forgiven]
        for entry in confirmed:
            del self.times[entry]
        self.row.clear()
        return confirmed, forgiven


class Wellness:
    """Whether this replica may claim prompts, and why not."""

    def __init__(self, *, check_engine: Check, check_reward: Check, video: Video) -> None:
        """`check_engine` and `check_reward` raise while those do not answer."""
        self._check_engine = check_engine
        self._check_reward = check_reward
        self._video = video
        self._check: Check | None = None
        self._checking = asyncio.Lock()
        self._pause_s = FIRST_PAUSE_S
        self._back_s = 0.0
        self.trouble: str | None = None
        """What keeps it from claiming; None: nothing."""

    def fault_of(self, error: BaseException) -> Fault | None:
        """What an error says about this replica; None: it is the prompt's."""
        if isinstance(error, EngineDownError) or _is_of_cuda(error):
            return Fault(f"the engine failed: {error}", self._check_engine, is_crash=True)
        if isinstance(error, RewardError):
            return Fault(str(error), self._check_reward)
        if isinstance(error, VideoError) and (gone := missing_videos(self._video)):
            return Fault(gone, self._check_videos)
        return None

    def leave(self, trouble: str, check: Check | None = None) -> None:
        """Claim nothing for a while, longer each time, and then until `check` passes."""
        self._check = check or self._check
        now_s = time.monotonic()
        if self.trouble is not None and now_s < self._back_s:
            return  # what was in work when it began fails too
        self._back_s = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, LAST_PAUSE_S)
        if self.trouble is None:
            logger.error("claiming no prompts until this is over", extra={"trouble": trouble})
        self.trouble = trouble

    def answered(self) -> None:
        """A prompt was answered: the next pause is short again."""
        if self.trouble is None:
            self._pause_s = FIRST_PAUSE_S

    async def is_well(self, *, within_s: float) -> bool:
        """Whether it may claim; waits at most `within_s` for a pause to end.

        Raises:
            ReplicaSickError: the engine is dead.
        """
        if self.trouble is None:
            return True
        left_s = self._back_s - time.monotonic()
        if left_s > 0:
            await asyncio.sleep(min(left_s, within_s))
            return False
        async with self._checking:
            return await self._is_over()

    async def _is_over(self) -> bool:
        if self.trouble is None or self._back_s > time.monotonic():
            return self.trouble is None
        try:
            if self._check is not None:
                await self._check()
        except (RewardError, VideoError) as error:
            self.leave(str(error))
            return False
        except Exception as error:
            raise ReplicaSickError(f"the engine is dead: {error}") from error
        logger.info("claiming prompts again", extra={"trouble": self.trouble})
        self.trouble = self._check = None
        return True

    async def _check_videos(self) -> None:
        if gone := await asyncio.to_thread(missing_videos, self._video):
            raise VideoError(gone)


def innermost(error: BaseException) -> BaseException:
    """What went wrong first in groups of tasks that ended each other."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def missing_videos(video: Video) -> str | None:
    """Why no video at all can be read here, though the learner could; None: some can.

    A mount that is gone leaves an empty folder, none, or one that cannot be listed.
    """
    if video.cache is not None and video.cache_mode == "strict":
        if _has_entries(video.cache):
            return None
        return f"shared.video.cache: found nothing in {video.cache}: is it mounted here?"
    if any(_has_entries(root) for root in video.roots):
        return None
    roots = [os.fspath(root) for root in video.roots]
    return f"shared.video.roots: found nothing in {roots}: are they mounted here?"


def _has_entries(folder: os.PathLike[str]) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def _is_of_cuda(error: BaseException | None) -> bool:
    """A broken CUDA context fails whatever comes next."""
    while error is not None:
        if "CUDA error" in str(error) or "device-side assert" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
