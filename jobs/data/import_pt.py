"""Old `.pt` caches of the public code (SPEC A3) → clip cache (`tempsamp data import-pt`).

Such a file says neither which content nor which parameters it was made with, so it is taken only if
its frame indices, its size and three of its frames are what our sampling of the source file gives,
and is refused otherwise. It is a pickle: torch reads tensors and plain values from it and refuses
everything that could run. Neighbours: `jobs.data.preprocess` (decoding instead),
`jobs.data.cache_filling`.

Its frames were resized by torchvision, ours by Pillow: an imported entry is not byte-equal to a
decoded clip (0.2 levels off on average). Both sides of a ring must then read it (mode strict).

Shapes: F frames, H W pixels, C = 3 channels (RGB).
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # the name of torch's refusal; nothing is unpickled here
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from common.errors import VideoError
from common.messages import ClipRef
from common.rows import TrainerRow, UnusableRowError
from common.video.cache import ClipCache, CorruptEntryError, SourceFile, describe
from common.video.frames import load_frames, sample_clip
from common.video.loader import is_entry_of
from jobs.data.cache_filling import (
    CacheFolder,
    Done,
    Factor,
    FailureFile,
    Fault,
    Fps,
    InputFiles,
    MaxFrames,
    MaxPixels,
    MinFrames,
    MinPixels,
    RunFile,
    TimeoutS,
    TotalPixels,
    VideoRootFolders,
    Workers,
    fill_in_terminal,
    group_rows,
    no_entry,
    video_settings,
)
from jobs.data.preprocess import Plan, content_of, find_video

if TYPE_CHECKING:
    import torch

MAX_MEAN_DIFFERENCE = 3.0
"""Mean distance of a frame from our decoding of it, in levels of 255. On seven real clips: at most
0.2 between the two resizers, 19 and more from a clip's first frame to its middle one."""
FPS_TOLERANCE = 1e-3


class RefusedPtError(VideoError):
    """An old cache file that is not, or cannot be shown to be, what our sampling gives."""


@dataclass(frozen=True)
class OldEntry:
    """A row's video and the file that holds its frames."""

    video: str
    pt: str

    def __str__(self) -> str:
        return f"{self.video} ({self.pt})"


def old_entry_of(row: TrainerRow) -> OldEntry:
    """What a row of the public code names.

    Raises:
        UnusableRowError: it has no `preprocessed_video`, or asks about a window.
    """
    if row.window is not None:
        raise UnusableRowError(
            "part of a longer file",
            f"found start_s {row.start_s} and end_s {row.end_s}, wanted a row about a whole file: "
            "old caches hold no windows; use tempsamp data preprocess",
        )
    match (row.model_extra or {}).get("preprocessed_video"):
        case str(pt) if pt:
            return OldEntry(video=row.videos[0], pt=pt)
        case other:
            raise UnusableRowError(
                "no preprocessed_video", f"found {other!r}, wanted the path of a .pt file"
            )


def import_entry(old: OldEntry, plan: Plan, pt_dir: Path) -> Done | Fault:
    """Convert one old file; what a worker process runs."""
    try:
        return _import_entry(old, plan, pt_dir)
    except RefusedPtError as error:
        return Fault("refused", str(error))
    except FileNotFoundError as error:
        return Fault("missing file", str(error))
    except VideoError as error:
        return Fault("unusable video", str(error))
    except OSError as error:
        return no_entry(error)


def _import_entry(old: OldEntry, plan: Plan, pt_dir: Path) -> Done:
    cache, fingerprint = ClipCache(plan.cache), plan.sampling.fingerprint
    file = find_video(old.video, plan)
    source = SourceFile.of(file)
    sha256 = content_of(file, cache)
    with cache.locked(sha256, sampling=fingerprint):
        written = not _is_there(cache, sha256=sha256, plan=plan)
        if written:
            pt = find_pt(old.pt, pt_dir)
            clip = sample_clip(file, sampling=plan.sampling)
            frames = read_pt(pt, clip=clip, parameters=describe(plan.sampling))
            _compare_pixels(frames, clip, pt)
            cache.write(
                frames,
                clip=clip,
                sampling=plan.sampling,
                source=source,
                imported_from=pt.name,
                sync=False,
            )
    return Done.of(cache, sha256=sha256, sampling=fingerprint, written=written)


def _is_there(cache: ClipCache, *, sha256: str, plan: Plan) -> bool:
    try:
        header = cache.header(sha256, sampling=plan.sampling.fingerprint)
    except CorruptEntryError:
        return False
    return header is not None and is_entry_of(header, sha256=sha256, sampling=plan.sampling)


def find_pt(name: str, pt_dir: Path) -> Path:
    """The old file of a row, below `pt_dir`: by its path there, else by its name.

    Raises:
        FileNotFoundError: it is not there.
    """
    root = pt_dir.resolve()
    for candidate in ((root / name).resolve(), root / Path(name).name):
        if candidate.is_file() and candidate.resolve().is_relative_to(root):
            return candidate
    raise FileNotFoundError(f"{name}: found nothing of that name below {root} (--pt-dir)")


def read_pt(path: Path, *, clip: ClipRef, parameters: str) -> npt.NDArray[np.uint8]:
    """Frames of an old file that holds exactly the frames of `clip`.

    Args:
        path: dict of `frames` [F, C, H, W] float32, 0 to 255, and `metadata`.
        clip: what our sampling gives for its source.
        parameters: that sampling, for the message.

    Returns:
        [F, H, W, C] uint8.

    Raises:
        RefusedPtError: it holds code, other frames, another size, or values out of range.
    """
    content = _load(path)
    frames_FCHW: Any = content.get("frames")
    metadata = content.get("metadata")
    shape = tuple(getattr(frames_FCHW, "shape", ()))
    if len(shape) != 4 or shape[1] != 3 or not isinstance(metadata, Mapping):
        raise RefusedPtError(
            f"{path}: found frames of shape {shape} and metadata {type(metadata).__name__}, "
            "wanted [F, 3, H, W] and a dict"
        )
    found, wanted = _claims(shape, metadata), _wants(clip)
    differ = [name for name in wanted if not _same(found[name], wanted[name])]
    if differ:
        raise RefusedPtError(
            f"{path}: differs in {', '.join(differ)}\nfound:  {_brief(found)}\n"
            f"wanted: {_brief(wanted)} by {parameters}"
        )
    return _to_uint8(frames_FCHW, path)


def _load(path: Path) -> Mapping[str, Any]:
    import torch

    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written by torch < 1.6, not a zip file that could be mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise RefusedPtError(
            f"{path}: found a pickle with more than tensors and plain values, which could run "
            f"code; it was not loaded: {str(error).splitlines()[0]}"
        ) from error
    except Exception as error:  # torch's unpickler raises whatever broken bytes lead it to
        raise RefusedPtError(f"{path}: not a readable .pt file: {error!r}") from error
    if not isinstance(content, Mapping):
        raise RefusedPtError(f"{path}: found a {type(content).__name__}, wanted a dict of frames")
    return content


def _claims(shape: tuple[int, ...], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says of itself; a caller that could not sample wrote neither total nor fps."""
    indices: Any = metadata.get("frames_indices")
    return {
        "num_frames": int(shape[0]),
        "frame_indices": indices.tolist() if hasattr(indices, "tolist") else indices,
        "frame_hw": [int(shape[2]), int(shape[3])],
        "total_frames": metadata.get("total_num_frames"),
        "source_fps": metadata.get("fps"),
    }


def _wants(clip: ClipRef) -> dict[str, Any]:
    return {
        "num_frames": len(clip.frame_indices),
        "frame_indices": list(clip.frame_indices),
        "frame_hw": list(clip.frame_hw),
        "total_frames": clip.total_frames,
        "source_fps": clip.source_fps,
    }


def _same(found: object, wanted: object) -> bool:
    if isinstance(found, float | int) and isinstance(wanted, float):
        return math.isclose(found, wanted, rel_tol=FPS_TOLERANCE)
    return found == wanted


def _brief(parameters: Mapping[str, Any]) -> str:
    return " ".join(
        f"{name}={_ends(setting) if isinstance(setting, list) else setting}"
        for name, setting in parameters.items()
    )


def _ends(numbers: list[Any]) -> str:
    if len(numbers) <= 4:
        return str(numbers)
    return f"[{numbers[0]}, {numbers[1]} … {numbers[-1]}]"


def _to_uint8(frames_FCHW: "torch.Tensor", path: Path) -> npt.NDArray[np.uint8]:
    """Rounded, frame by frame: the file is mapped, so memory holds the result and one frame."""
    num_frames, channels, height_px, width_px = frames_FCHW.shape
    frames_FHWC = np.empty((num_frames, height_px, width_px, channels), dtype=np.uint8)
    for index, frame_CHW in enumerate(frames_FCHW):
        values = frame_CHW.float().numpy()
        low, high = float(values.min()), float(values.max())
        if not (low >= -0.5 and high <= 255.5):  # also refuses NaN
            raise RefusedPtError(
                f"{path}: found values of {low:g} to {high:g} in frame {index}, wanted 0 to 255"
            )
        frames_FHWC[index] = values.round().clip(0, 255).transpose(1, 2, 0)
    return frames_FHWC


def _compare_pixels(frames: npt.NDArray[np.uint8], clip: ClipRef, path: Path) -> None:
    """Refuse another video's frames: of equal count and size, they would pass all else."""
    ours = load_frames(clip)
    for index in (0, len(ours) // 2, len(ours) - 1):
        distance = float(np.abs(frames[index].astype(np.int16) - ours[index]).mean())
        if distance > MAX_MEAN_DIFFERENCE:
            raise RefusedPtError(
                f"{path}: frame {index} is {distance:.1f} levels from the same frame of "
                f"{clip.uri}, wanted at most {MAX_MEAN_DIFFERENCE}: made from another file"
            )


def command(
    inputs: InputFiles,
    pt_dir: Annotated[
        Path, typer.Option("--pt-dir", exists=True, file_okay=False, help="Folder of .pt files.")
    ],
    cache: CacheFolder = None,
    video_root: VideoRootFolders = None,
    config: RunFile = None,
    fps: Fps = None,
    min_frames: MinFrames = None,
    max_frames: MaxFrames = None,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    total_pixels: TotalPixels = None,
    factor: Factor = None,
    workers: Workers = None,
    failures: FailureFile = None,
    timeout_s: TimeoutS = 600.0,
) -> None:
    """Convert an old .pt cache, made with these parameters, into the clip cache."""
    video = video_settings(
        config,
        cache=cache,
        video_root=video_root,
        fps=fps,
        min_frames=min_frames,
        max_frames=max_frames,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        total_pixels=total_pixels,
        factor=factor,
    )
    plan = Plan.of(video)
    rows = group_rows(inputs, key=old_entry_of)
    fill_in_terminal(
        "import-pt",
        functools.partial(import_entry, plan=plan, pt_dir=pt_dir),
        rows,
        inputs=inputs,
        cache=plan.cache,
        workers=workers,
        timeout_s=timeout_s,
        failures_file=failures,
        reads=[
            config,
            *(plan.roots[0] / old.video for old in rows.places),
            *(pt_dir / name for old in rows.places for name in (old.pt, Path(old.pt).name)),
        ],
    )
