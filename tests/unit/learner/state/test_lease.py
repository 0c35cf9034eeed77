"""A run has one learner."""

from pathlib import Path

import pytest

from common.errors import ConfigError
from services.learner.desk import _lock_folder


def test_second_learner_in_the_same_folder_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    first = _lock_folder(tmp_path / "run")
    with pytest.raises(ConfigError, match="another learner is at work"):
        _lock_folder(tmp_path / "run")
    first.close()
    _lock_folder(tmp_path / "run").close()
