"""A checkpoint is whole, or it is said what is wrong with it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from services.learner.state import manifest
from services.learner.state.manifest import fault_of, write_manifest

LIMIT_BYTES = 1000


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(manifest, "DIGEST_UP_TO_BYTES", LIMIT_BYTES)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/big").write_bytes(b"1" * (LIMIT_BYTES + 1))
    (tmp_path / "shards/small").write_bytes(b"1" * LIMIT_BYTES)
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
        ("shards/big", lambda path: path.write_bytes(b"1"), "found 1 bytes, wanted 1001"),
        (
            "shards/small",
            lambda path: path.write_bytes(b"2" * LIMIT_BYTES),
            "its content has changed",
        ),
        ("manifest.json", Path.unlink, "missing"),
        ("manifest.json", lambda path: path.write_text("{"), "no list of files"),
    ],
)
def test_damage_is_named(
    checkpoint: Path, name: str, damage: Callable[[Path], object], fault: str
) -> None:
    damage(checkpoint / name)
    assert fault_of(checkpoint) == f"{name}: {fault}"
