"""A model's id and revision → its folder in the cache of huggingface_hub, fetched once a machine.

    ORG/NAME, revision -> hub (HF_ENDPOINT, HF_TOKEN) -> cache (HF_HOME) -> snapshot folder

The only file that imports huggingface_hub, and only when there is an id: it reads its environment
at import. Its locks let processes that start together download a file once. Every wait is bounded
and said. Neighbour: `common.model.folder`, which checks what was fetched.
"""

import contextlib
import errno
import functools
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import httpx2
from huggingface_hub import (
    HfApi,
    constants,
    get_session,
    set_client_factory,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from common.errors import ConfigError
from common.logs import speaking
from common.model.checks import WANTED, WEIGHTS, Say, matches, problem

ATTEMPTS = 3
"""Of asking for the list of files; once is enough where the cache can stand in."""
RETRY_S = 0.5
"""While files travel."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


@functools.cache
def snapshot(repo: str, revision: str, *, patterns: tuple[str, ...], say: Say) -> Path:
    """The folder of the commit that a revision means.

    One answer a process: a branch that moves meanwhile must not give its parts different models.

    Raises:
        ConfigError: it is neither in the cache nor to be had; one line.
    """
    wanted = _Wanted(repo, revision, patterns, say)
    folder = wanted.offline() if constants.is_offline_mode() else wanted.online()
    if WEIGHTS in patterns:
        say(f"{wanted.name} is commit {folder.name}, read from {folder}")
    return folder


@dataclass(frozen=True)
class _Wanted:
    """One revision of one model."""

    repo: str
    revision: str
    patterns: tuple[str, ...]
    say: Say

    @property
    def name(self) -> str:
        """As it could have been written."""
        return f"{self.repo}@{self.revision}"

    @property
    def cache(self) -> Path:
        """What huggingface_hub keeps of the model: blobs, snapshots, refs."""
        return Path(constants.HF_HUB_CACHE, f"models--{self.repo.replace('/', '--')}")

    def offline(self) -> Path:
        """What the cache holds.

        Raises:
            ConfigError: not all of the revision.
        """
        try:
            return self._download(local_files_only=True)
        except LocalEntryNotFoundError as error:
            part = "a part" if isinstance(error, IncompleteSnapshotError) else "nothing"
            raise ConfigError(
                f"{self._no_folder}, and {part} of {self.name} in the cache "
                f"{constants.HF_HUB_CACHE}, wanted all of it: HF_HUB_OFFLINE (or "
                "TRANSFORMERS_OFFLINE) is set; unset it, or fetch the model before"
            ) from error

    def online(self) -> Path:
        """The newest commit of the revision; what is cached of it if the hub cannot say.

        Raises:
            ConfigError: what the hub said.
        """
        try:
            _limit_waits(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        except (ImportError, ValueError, httpx2.InvalidURL) as error:
            raise ConfigError(
                f"found a proxy that cannot be used for {self.name} ({_briefly(error)}), wanted "
                "none or an http address (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY)"
            ) from error
        cached = self._cached()
        if cached is not None and _COMMIT.fullmatch(self.revision):
            return cached
        try:
            commit, sizes = self._listing(attempts=ATTEMPTS if cached is None else 1)
        except (httpx2.HTTPError, OSError, ValueError, KeyError, TypeError) as error:
            if cached is None or isinstance(error, RevisionNotFoundError):
                raise ConfigError(self._in_words(error)) from error
            self.say(
                f"no answer about {self.name} from {constants.ENDPOINT} ({_briefly(error)}): going "
                f"on with commit {cached.name} from the cache"
            )
            return cached
        return self._fetch(commit, sizes)

    def _fetch(self, commit: str, sizes: dict[str, int]) -> Path:
        here = self.cache / "snapshots" / commit
        missing = {name: size for name, size in sizes.items() if not (here / name).exists()}
        total = sum(missing.values())
        if missing:
            self.say(
                f"fetching {self.name}: {len(missing)} of its files, {_size(total)}, of commit "
                f"{commit} from {constants.ENDPOINT} into {self.cache}"
            )
        try:
            with self._progress(total), _stoppable_bars() as bars:
                return self._download(tqdm_class=bars)
        except (httpx2.HTTPError, OSError, ValueError, RuntimeError) as error:
            raise ConfigError(self._in_words(error, total=total)) from error

    def _cached(self) -> Path | None:
        """What the cache holds, if that is all of the revision."""
        try:
            folder = self._download(local_files_only=True)
        except LocalEntryNotFoundError:
            return None
        # Who fetched single files left a folder without a list of what belongs to it.
        return None if problem(folder, with_weights=WEIGHTS in self.patterns) else folder

    def _download(self, **options: Any) -> Path:
        return Path(
            snapshot_download(
                self.repo,
                revision=self.revision,
                allow_patterns=list(self.patterns),
                # Patterns match in sub-folders too, which hold other formats.
                ignore_patterns=["*/*"],
                **options,
            )
        )

    def _listing(self, *, attempts: int) -> tuple[str, dict[str, int]]:
        """Commit, and the bytes of each file that is needed."""
        for attempt in Retrying(
            stop=stop_after_attempt(attempts),
            wait=wait_exponential(multiplier=RETRY_S),
            retry=retry_if_exception(_may_pass),
            before_sleep=lambda state: self._say_again(state.outcome),
            reraise=True,
        ):
            with attempt:
                info = HfApi().model_info(
                    self.repo,
                    revision=self.revision,
                    files_metadata=True,
                    timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                )
        return str(info.sha), {
            file.rfilename: file.size or 0
            for file in info.siblings or ()
            if "/" not in file.rfilename and matches(file.rfilename, self.patterns)
        }

    def _say_again(self, outcome: Any) -> None:
        error = _briefly(outcome.exception())
        self.say(f"no answer about {self.name} from {constants.ENDPOINT} ({error}): asking again")

    @contextlib.contextmanager
    def _progress(self, total: int) -> Iterator[None]:
        """Say every now and then how much has come, whichever process fetches it."""
        before = _bytes_in(self.cache / "blobs")

        def say(_seconds: float) -> None:
            come = _bytes_in(self.cache / "blobs") - before
            self.say(f"fetching {self.name}: {_size(come)} of {_size(total)}")

        with speaking(say):
            yield

    @property
    def _no_folder(self) -> str:
        return f"found no folder {self.repo} in {Path.cwd()}"

    def _in_words(self, error: BaseException, *, total: int = 0) -> str:
        """One line: who was asked, what came back, what to change."""
        # "Not in the cache either" stands before why it could not be fetched.
        while isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
            error = error.__cause__
        if (status := _status(error)) is not None:
            return self._refusal_in_words(error, status)
        if isinstance(error, httpx2.TimeoutException):
            return (
                f"{self._no_folder}, and no answer for {self.name} from {constants.ENDPOINT} in "
                f"{constants.HF_HUB_DOWNLOAD_TIMEOUT} s (HF_HUB_DOWNLOAD_TIMEOUT), wanted {WANTED}"
            )
        if isinstance(error, httpx2.HTTPError):
            return (
                f"{self._no_folder}, and {constants.ENDPOINT} (HF_ENDPOINT) cannot be reached for "
                f"{self.name} ({_briefly(error)}), wanted {WANTED}"
            )
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"found no space left in {constants.HF_HUB_CACHE}, wanted {_size(total)} for "
                f"{self.name}: make room, or set HF_HOME to a folder on another disk"
            )
        if isinstance(error, OSError) and error.errno is not None:
            return (
                f"found {error.filename or constants.HF_HUB_CACHE}: {error.strerror}, wanted a "
                "cache that can be written (HF_HOME)"
            )
        return (
            f"found {_briefly(error)!r} when {constants.ENDPOINT} (HF_ENDPOINT) was asked for "
            f"{self.name}, wanted a model"
        )

    def _refusal_in_words(self, error: BaseException, status: int) -> str:
        hub = constants.ENDPOINT
        if isinstance(error, RevisionNotFoundError):
            return (
                f"found no revision {self.revision} of {self.repo} on {hub}, wanted a branch, tag "
                "or commit of it"
            )
        if isinstance(error, GatedRepoError):
            return (
                f"found {self.repo} gated on {hub} ({status}), wanted access: accept its terms on "
                "its page there, and set HF_TOKEN to a token of that account"
            )
        if isinstance(error, RepositoryNotFoundError) or status == 404:
            return (
                f"{self._no_folder}, and no model {self.repo} on {hub} ({status}), wanted "
                f"{WANTED}; a private model needs HF_TOKEN"
            )
        if status in (401, 403):
            return (
                f"found {self.repo} closed to us on {hub} ({status}), wanted access: set HF_TOKEN "
                "to a token that may read it"
            )
        return (
            f"{self._no_folder}, and {hub} answers {status} for {self.name}, wanted the model: try "
            "again later"
        )


def _may_pass(error: BaseException) -> bool:
    """Whether asking again makes sense."""
    if (status := _status(error)) is None:
        return isinstance(error, httpx2.TransportError)
    return status in (408, 429) or status >= 500


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error carries."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _briefly(error: BaseException) -> str:
    """Its status, or the first line of what it says."""
    if (status := _status(error)) is not None:
        return str(status)
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _size(num_bytes: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"


def _bytes_in(folder: Path) -> int:
    """On the disk: a file that is being fetched may have its final length from the start."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_blocks * 512
    return total


def _limit_waits(timeout_s: float) -> None:
    """Give requests of huggingface_hub that have no deadline one, in this process from now on.

    Those that list files have none: a hub that takes the connection and then says nothing would
    hold a run for ever.
    """
    hooks = get_session().event_hooks["request"]

    def limit(request: httpx2.Request) -> None:
        waits = request.extensions["timeout"]
        request.extensions["timeout"] = {
            part: timeout_s if wait is None else wait for part, wait in waits.items()
        }

    set_client_factory(
        lambda: httpx2.Client(event_hooks={"request": [*hooks, limit]}, follow_redirects=True)
    )


@contextlib.contextmanager
def _stoppable_bars() -> Iterator[type[tqdm]]:
    """Progress bars that show nothing and through which Ctrl-C ends the threads that download.

    Those would finish their files first, minutes each. A second Ctrl-C ends the process at once.
    """
    stopped = threading.Event()

    class Bar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            if stopped.is_set():
                raise InterruptedError("stopped")

    def stop(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        stopped.set()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield Bar
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield Bar
    finally:
        signal.signal(signal.SIGINT, before)
