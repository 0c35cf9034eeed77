"""A checkpoint is whole, or it is said what is wrong with it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from services.learner.state.manifest import DIGEST_UP_TO_BYTES, fault_of, write_manifest


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/big").write_bytes(b"1" * (DIGEST_UP_TO_BYTES + 1))
    (tmp_path / "run_state.json").write_text("{}")
    write_manifest(tmp_path)
    return tmp_path


def test_what_was_written_is_whole(checkpoint: Path) -> None:
    assert fault_of(checkpoint) is None


def flip(path: Path) -> None:
    path.write_bytes(b"[]")


@pytest.mark.parametrize(
    ("name", "damage", "fault"),
    [
        ("run_state.json", lambda path: path.write_bytes(b""), "found 0 bytes, wanted 2"),
        ("run_state.json", flip, "its content has changed"),
        ("run_state.json", Path.unlink, "missing"),
        ("shards/big", lambda path: path.write_bytes(b"1"), "found 1 bytes, wanted 1048577"),
        ("manifest.json", Path.unlink, "FileNotFoundError"),
        ("manifest.json", lambda path: path.write_text("{"), "ValidationError"),
    ],
)
def test_damage_is_named(
    checkpoint: Path, name: str, damage: Callable[[Path], object], fault: str
) -> None:
    damage(checkpoint / name)
    assert fault_of(checkpoint) == f"{name}: {fault}"
