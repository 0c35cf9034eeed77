"""One TOML per run → frozen, typed sections. `load(path)` → `Run`.

A service reads `[shared]` and its own section, nothing more; what two services must agree on lives
once in `[shared]`. Unknown keys are refused with the nearest valid name. Secrets do not belong in a
run file: they come from the environment, which only `common.secrets` reads. Fields are documented
by the string below them.
"""

from common.config.curriculum import EarlyStop, Phase, Pool
from common.config.fields import Section
from common.config.kernels import Kernels
from common.config.learner import Learner, Optimizer, Validation
from common.config.lora import Lora
from common.config.objective import Advantage, Loss
from common.config.reading import SECRETS, Run, SectionName, bearer, dump, load, load_reward, parse
from common.config.room import Room
from common.config.services import Reward, Rollout
from common.config.shared import Scoring, Shared, Video
from common.config.watching import DumpSteps, KeepGroups, Tracking
from common.messages import Strategy, ThinkInjection

__all__ = [
    "SECRETS",
    "Advantage",
    "DumpSteps",
    "EarlyStop",
    "KeepGroups",
    "Kernels",
    "Learner",
    "Lora",
    "Loss",
    "Optimizer",
    "Phase",
    "Pool",
    "Reward",
    "Rollout",
    "Room",
    "Run",
    "Scoring",
    "Section",
    "SectionName",
    "Shared",
    "Strategy",
    "ThinkInjection",
    "Tracking",
    "Validation",
    "Video",
    "bearer",
    "dump",
    "load",
    "load_reward",
    "parse",
]
