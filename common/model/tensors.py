"""Headers of safetensors files → which tensors a model folder holds → what is wrong with them.

Pure but for reading files, and without torch: what a model needs comes from `expected.py`. A tensor
that is missing would be drawn at random and trained, one that nobody asks for belongs to another
model.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import ConfigError
from common.model.checks import WEIGHTS

HARMLESS = (re.compile(r"\.rotary_(?:pos_)?emb\.\w*inv_freq$"), re.compile(r"^mtp\."))
"""Buffers that are computed from the configuration, and Qwen3.5's multi-token prediction, which
neither side loads."""
SHOWN = 5
"""Names of one kind in a message; the rest is counted."""
MAX_HEADER_BYTES = 100_000_000
"""As the format has it."""
CHUNK_BYTES = 2**24


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    """In bytes, from the start of the file."""
    end: int


@dataclass(frozen=True, slots=True)
class Expected:
    """What a model loads."""

    architecture: str
    shapes: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]
    """Name that may be absent → name of the tensor that it is."""
    renamed: Callable[[str], str] = field(default=str)
    """Name in a file → name in `shapes`: checkpoints keep older names."""


def refuse_unfit(folder: Path, expected: Expected, *, knob: str = "shared.model") -> None:
    """Check that a folder holds the tensors of its model: all, no other, in their shapes.

    Raises:
        ConfigError: it does not; one line that names the first few of each kind.
    """
    if faults := list(_faults(stored(folder, knob=knob), expected)):
        raise ConfigError(
            f"{knob}: found {'; '.join(faults)} in {folder}, wanted the tensors of "
            f"{expected.architecture} as config.json describes it: get the folder whole again, or "
            "the config.json that belongs to it"
        )


def stored(folder: Path, *, knob: str = "shared.model") -> dict[str, Stored]:
    """The tensors in the files that a model is loaded from, by the names that they have there.

    Raises:
        ConfigError: a file is damaged or cut.
    """
    found: dict[str, Stored] = {}
    for file in _files(folder):
        try:
            found |= _header(file)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{knob}: found a damaged {file.name} in {folder} ({error}), wanted a whole "
                "safetensors file: get it again"
            ) from error
    return found


def _files(folder: Path) -> Sequence[Path]:
    """As transformers and vLLM choose: one whole file, else those of an index, else all."""
    if (whole := folder / "model.safetensors").is_file():
        return [whole]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = json.loads(index.read_bytes())["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    return sorted(folder.glob(WEIGHTS))


def _header(file: Path) -> dict[str, Stored]:
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length:,} bytes")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    base = 8 + length
    found = {
        name: Stored(
            file=file,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            start=base + entry["data_offsets"][0],
            end=base + entry["data_offsets"][1],
        )
        for name, entry in header.items()
    }
    wanted = max((tensor.end for tensor in found.values()), default=base)
    if (size := file.stat().st_size) != wanted:
        raise ValueError(f"{size:,} bytes where its header says {wanted:,}")
    return found


def _faults(found: Mapping[str, Stored], expected: Expected) -> Iterator[str]:
    known = {expected.renamed(name): tensor for name, tensor in found.items()}
    missing = sorted(expected.shapes.keys() - known.keys() - expected.tied.keys())
    if missing:
        yield f"no {_named(missing)}"
    if strangers := sorted(
        name
        for name in found
        if expected.renamed(name) not in expected.shapes
        and not any(pattern.search(name) for pattern in HARMLESS)
    ):
        yield f"{_counted(strangers)} of another model ({_named(strangers)})"
    if misshapen := [
        f"{name} of shape {list(known[name].shape)} instead of {list(shape)}"
        for name, shape in sorted(expected.shapes.items())
        if name in known and known[name].shape != shape
    ]:
        yield _named(misshapen)
        return
    for name, source in expected.tied.items():
        if name in known and source in known and not _equal(known[name], known[source]):
            yield f"a {name} that differs from {source}, though config.json ties them"


def _equal(one: Stored, other: Stored) -> bool:
    """Whether two tensors are the same bytes."""
    if one.dtype != other.dtype or one.end - one.start != other.end - other.start:
        return False
    with one.file.open("rb") as left, other.file.open("rb") as right:
        left.seek(one.start)
        right.seek(other.start)
        for done in range(0, one.end - one.start, CHUNK_BYTES):
            size = min(CHUNK_BYTES, one.end - one.start - done)
            if left.read(size) != right.read(size):
                return False
    return True


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)} tensor{'s' * (len(names) != 1)}"


def _named(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
