"""What makes a checkpoint whole: `manifest.json`, written last, names every file of it.

Sizes of all files, and digests of those up to 64 MiB, which take 0.2 s: torch reads a tensor whose
bytes have changed without a word. Shards of gigabytes are known by their size, as what a crash
leaves of them is short. `write_manifest(folder)` before the folder is renamed, `fault_of(folder)`
on resume.
"""

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

NAME = "manifest.json"
DIGEST_UP_TO_BYTES = 2**26


class FileFacts(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    sha256: str | None
    """None for a large file."""


class Manifest(BaseModel):
    """Path relative to the checkpoint → facts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, FileFacts]


def write_manifest(folder: Path) -> None:
    """Describe everything that lies in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    manifest = Manifest(files={str(path.relative_to(folder)): _facts(path) for path in files})
    (folder / NAME).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def fault_of(folder: Path) -> str | None:
    """What keeps a checkpoint from being whole; None if nothing does.

    Raises:
        OSError: its files cannot be read, which says nothing of what is in them.
    """
    try:
        manifest = Manifest.model_validate_json((folder / NAME).read_bytes())
    except FileNotFoundError:
        return f"{NAME}: missing"
    except ValidationError:
        return f"{NAME}: no list of files"
    for name, wanted in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name}: missing"
        found = path.stat().st_size
        if found != wanted.size:
            return f"{name}: found {found} bytes, wanted {wanted.size}"
        if _facts(path) != wanted:
            return f"{name}: its content has changed"
    return None


def _facts(path: Path) -> FileFacts:
    size = path.stat().st_size
    if size > DIGEST_UP_TO_BYTES:
        return FileFacts(size=size, sha256=None)
    with path.open("rb") as file:
        return FileFacts(size=size, sha256=hashlib.file_digest(file, "sha256").hexdigest())
