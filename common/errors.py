"""Errors name the boundary crossed; user mistakes are `ValueError`, our own bugs are `assert`.

    TempSampError
    ├── VideoError    a clip could not be opened, decoded or sampled
    ├── EngineError   the rollout engine refused or failed a request
    ├── RewardError   the reward service could not give a verdict
    ├── QueueError    Redis is unreachable or holds something unreadable
    │   └── AccessError   Redis does not let us in, and asking again does not help
    ├── WeightError   a weight transfer did not reach its receivers
    │   └── GroupError   because of the group: some other member is at fault, maybe
    ├── StalledError  the ring gives the learner nothing that it can use
    ├── ParityError   engine and learner disagree about one and the same weights
    ├── CheckpointError  a checkpoint could not be written, or none is whole
    ├── OutputError   a file could not be written after the work had begun
    ├── MemoryShortError  a rank's memory ran out
    └── RunLostError  another learner has taken the run
    ConfigError(ValueError)   the run's TOML is wrong

Every message gives the value found, the value wanted and the knob that changes it. `last_words` is
what a command says of an error that ends it.
"""

import errno
import socket


class TempSampError(Exception):
    """Base of everything that crosses a service boundary."""


class VideoError(TempSampError):
    """A clip could not be opened, decoded or sampled."""


class EngineError(TempSampError):
    """The rollout engine refused or failed a request."""


class RewardError(TempSampError):
    """The reward service could not give a verdict."""


class QueueError(TempSampError):
    """Redis is unreachable or holds something unreadable."""


class AccessError(QueueError):
    """Redis does not let us in: a wrong password or user, or a certificate that is not trusted."""


class WeightError(TempSampError):
    """A weight transfer did not reach its receivers, or what arrived differs from what was sent."""


class GroupError(WeightError):
    """The weight group did not come together or broke; not necessarily this member's fault."""


class StalledError(TempSampError):
    """The ring gives the learner nothing that it can use."""


class ParityError(TempSampError):
    """Engine and learner give the same tokens other log-probabilities at the same weights."""


class CheckpointError(TempSampError):
    """A checkpoint could not be written, or none of those found is whole."""


class OutputError(TempSampError):
    """A file could not be written after the work had begun: no room, or no permission any more."""


class MemoryShortError(TempSampError):
    """Memory ran out, and the step could not be repeated with less."""


class RunLostError(TempSampError):
    """Another learner has taken the run: this one must change nothing any more."""


class ConfigError(ValueError):
    """A key or value of the run's TOML is wrong."""


SAME_AGAIN = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EADDRINUSE, errno.EADDRNOTAVAIL),
    }
)
"""Paths and addresses that the same command would find as they are: somebody has to change them."""
LONGEST_CHARS = 1000
"""Of what a library says."""


def last_words(error: BaseException) -> tuple[str, int]:
    """The one line of a command that ends with this error, and its exit code.

    2 for what the same command would meet again, 1 for the rest. What nobody foresaw, of ours or of
    a library, is named by its type, and the way to its traceback.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ConfigError | AccessError):
        return f"tempsamp: {error}\n", 2
    if isinstance(error, TempSampError):
        return f"tempsamp: {type(error).__name__}: {error}\n", 1
    if isinstance(error, OSError) and error.strerror:
        again = error.errno in SAME_AGAIN or isinstance(error, socket.gaierror)
        return f"tempsamp: {_of_the_system(error)}\n", 2 if again else 1
    said = " ".join(str(error).split())[:LONGEST_CHARS]
    return f"tempsamp: {type(error).__name__}: {said} (tempsamp --debug ... shows where)\n", 1


def _of_the_system(error: OSError) -> str:
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    if not names and isinstance(error, socket.gaierror):
        names = ["a host name or an address"]
    return ": ".join([*names, str(error.strerror)])
