"""Benchmark names → annotation files, and video names → files (SPEC A1.5, A1.6).

Files keep the names they are published under; a folder of ours may hold them flat or one folder
deep. `jobs.data.annotations` reads them, `jobs.evaluation.questions` asks about them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from common.errors import ConfigError
from common.video.names import as_on_disk, video_key, videos_in

LAYOUTS = ("", "videos", "video_shards")
"""Folders below the video root that published layouts use."""
ROWS_SUFFIXES = frozenset({".jsonl", ".json", ".gz"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """What a name of `--bench` stands for."""

    name: str
    """Of the output folder."""
    scored_as: str
    """Key of `jobs.evaluation.scoring.score.BENCHES`."""
    files: tuple[str, ...]
    """Names of its annotation file, the usual one first."""
    subset: str = ""
    """Folder of its videos below one of `LAYOUTS`."""
    rates_clips: bool = False
    """Whether highlights can be asked for."""


def _timelens(subset: str) -> Benchmark:
    name = f"{subset}-timelens"
    return Benchmark(name=name, scored_as=name, files=(f"{name}.json",), subset=subset)


def _activitynet(name: str, part: str) -> Benchmark:
    files = (f"{part}.json", f"activitynet_{part}.json", f"{part}.2dtan.json")
    return Benchmark(name=name, scored_as="activitynet-captions", files=files, subset="activitynet")


BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        benchmark.name: benchmark
        for benchmark in (
            _timelens("charades"),
            _timelens("activitynet"),
            _timelens("qvhighlights"),
            Benchmark(
                name="charades-sta",
                scored_as="charades-sta",
                files=(
                    "charades_sta_test.txt",
                    "charades_test.json",
                    "charades_test.timezero.json",
                ),
                subset="charades",
            ),
            # What 2D-TAN and TimeZero call the test set is val_2.
            _activitynet("activitynet-captions", "val_2"),
            _activitynet("activitynet-captions-val_1", "val_1"),
            _activitynet("activitynet-captions-val_2", "val_2"),
            Benchmark(
                name="qvhighlights",
                scored_as="qvhighlights",
                files=("highlight_val_release.jsonl",),
                subset="qvhighlights",
                rates_clips=True,
            ),
            Benchmark(
                name="tvgbench",
                scored_as="tvgbench",
                files=("tvgbench.json",),
                subset="tvgbench_data",
            ),
        )
    }
)


def benchmarks_named(names: str) -> list[Benchmark]:
    """Benchmarks of a comma-separated list; a path is a file of trainer rows.

    Raises:
        ConfigError: an unknown name (suggests the nearest), or two of one output folder.
    """
    found = [_named(name.strip()) for name in names.split(",") if name.strip()]
    if not found:
        raise ConfigError(f"--bench: found {names!r}, wanted one of {', '.join(BENCHMARKS)}")
    folders = [benchmark.name for benchmark in found]
    if len(set(folders)) < len(folders):
        raise ConfigError(
            f"--bench: found {', '.join(folders)}, wanted every name once: answers go into a "
            "folder of that name"
        )
    return found


def _named(name: str) -> Benchmark:
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    path = Path(name)
    if path.is_file() or path.suffix in ROWS_SUFFIXES:
        return Benchmark(name=path.name.split(".")[0], scored_as="rows", files=(name,))
    near = get_close_matches(name, BENCHMARKS, n=3, cutoff=0.4)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise ConfigError(
        f"--bench: found {name!r}, wanted one of {', '.join(BENCHMARKS)}, or the path of a file of "
        f"trainer rows (.jsonl){hint}"
    )


def annotation_file(benchmark: Benchmark, *, folder: Path | None) -> Path:
    """The annotation file of a benchmark.

    Args:
        benchmark: what is wanted.
        folder: --bench-dir; a file of trainer rows needs none.

    Raises:
        ConfigError: not there, or there several times.
    """
    if benchmark.scored_as == "rows":
        path = Path(benchmark.files[0])
        if not path.is_file():
            raise ConfigError(f"--bench: found no file {path}, wanted trainer rows")
        return path
    if folder is None:
        raise ConfigError(f"--bench-dir: found none, wanted the folder of {benchmark.files[0]}")
    for name in (name + packed for name in benchmark.files for packed in ("", ".gz")):
        found = sorted({*folder.glob(name), *folder.glob(f"*/{name}")})
        if len(found) > 1:
            raise ConfigError(
                f"--bench-dir: found {', '.join(map(str, found))}, wanted one {name}: name the "
                "folder of one of them"
            )
        if found:
            return found[0]
    raise ConfigError(
        f"--bench-dir: found none of {', '.join(benchmark.files)} in {folder} or a folder of it, "
        f"wanted the annotations of {benchmark.name}"
    )


def find_video(name: str, *, root: Path, subset: str = "") -> Path | None:
    """The file of a video, absolute; None if it is not there.

    Looked for as the annotations write it, then by its name alone (`common.video.names`: any
    suffix of a video, letters composed either way) in every published layout (`videos/`,
    `video_shards/`, flat; with and without the benchmark's folder).

    Args:
        name: as `jobs.data.annotations` gives it.
        root: --video-root.
        subset: of the benchmark.
    """
    exact = as_on_disk(root / name)
    if exact.is_file():
        return exact.resolve()
    key = video_key(name)
    found = (videos_in(folder).get(key) for folder in _folders(root, subset))
    file = next((file for file in found if file is not None and file.is_file()), None)
    return None if file is None else file.resolve()


def names_there(root: Path, *, subset: str = "") -> set[str]:
    """Names of all videos that `find_video` could find by name."""
    return {file.name for folder in _folders(root, subset) for file in videos_in(folder).values()}


def _folders(root: Path, subset: str) -> list[Path]:
    places = (folder for layout in LAYOUTS for folder in (root / layout / subset, root / layout))
    return list(dict.fromkeys(places))
