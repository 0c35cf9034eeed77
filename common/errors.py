"""Errors name the boundary crossed; user mistakes are `ValueError`, our own bugs are `assert`.

    TempSampError
    ├── VideoError    a clip could not be opened, decoded or sampled
    ├── EngineError   the rollout engine refused or failed a request
    ├── RewardError   the reward service could not give a verdict
    ├── QueueError    Redis is unreachable or holds something unreadable
    ├── WeightError   a weight transfer did not reach its receivers
    │   └── GroupError   because of the group: some other member is at fault, maybe
    ├── StalledError  the ring gives the learner nothing that it can use
    ├── ParityError   engine and learner disagree about one and the same weights
    ├── CheckpointError  a checkpoint could not be written, or none is whole
    ├── OutputError   a file could not be written after the work had begun
    ├── MemoryShortError  a rank's memory ran out
    └── RunLostError  another learner has taken the run
    ConfigError(ValueError)   the run's TOML is wrong

Every message gives the value found, the value wanted and the knob that changes it.
"""


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
