"""Clips from files: sampling, decoding, true times, and files that are no videos."""

import hashlib
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from common.errors import VideoError
from common.messages import ClipRef
from common.video.frames import decode, load_frames, probe, processor_metadata, sample_clip
from common.video.sampling import VideoSampling
from tests.fixtures.clips import make_clip

TWO_FPS = VideoSampling(fps=2.0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds at 8 frames per second, 64 wide and 48 high."""
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", num_frames=24)


class TestSampling:
    def test_frames_are_even_in_number_and_span_the_clip(self, clip: Path) -> None:
        ref = sample_clip(clip, sampling=TWO_FPS)
        assert len(ref.frame_indices) == 6
        assert (ref.frame_indices[0], ref.frame_indices[-1]) == (0, 23)
        assert ref.duration_s == 3.0

    def test_each_frame_has_its_time(self, clip: Path) -> None:
        ref = sample_clip(clip, sampling=TWO_FPS)
        assert ref.frame_times_s == tuple(index / 8 for index in ref.frame_indices)

    def test_reference_names_file_content_decoder_and_settings(self, clip: Path) -> None:
        ref = sample_clip(clip, sampling=TWO_FPS)
        assert ref.uri == str(clip)
        assert ref.sha256 == hashlib.sha256(clip.read_bytes()).hexdigest()
        assert ref.decoder == "decord"
        assert ref.sampling == TWO_FPS.fingerprint

    def test_reference_survives_the_wire_exactly(self, clip: Path) -> None:
        ref = sample_clip(clip, sampling=TWO_FPS)
        assert ClipRef.model_validate_json(ref.model_dump_json()) == ref

    def test_reference_wants_a_time_for_every_frame(self, clip: Path) -> None:
        document = json.loads(sample_clip(clip, sampling=TWO_FPS).model_dump_json())
        document["frame_times_s"] = document["frame_times_s"][1:]
        with pytest.raises(ValueError, match="5 frame times for 6 frames"):
            ClipRef.model_validate(document)

    def test_probe_says_what_the_file_holds(self, clip: Path) -> None:
        found = probe(clip)
        assert (found.width_px, found.height_px, found.total_frames) == (64, 48, 24)
        assert (found.source_fps, found.duration_s) == (8.0, 3.0)
        assert (found.rotation_deg, found.variable_frame_rate) == (0, False)
        assert (found.path, found.decoder) == (str(clip), "decord")
        assert found.sha256 == hashlib.sha256(clip.read_bytes()).hexdigest()

    @pytest.mark.parametrize("fps", [Fraction(30_000, 1001), Fraction(143, 15), Fraction(15)])
    def test_rate_is_the_headers_where_the_frames_keep_it(self, tmp_path: Path, fps: float) -> None:
        file = make_clip(tmp_path / "clip.mp4", num_frames=40, fps=float(fps))
        found = probe(file)
        assert found.source_fps == pytest.approx(float(fps), rel=1e-4)
        assert not found.variable_frame_rate


class TestLoading:
    def test_frames_have_the_promised_shape_and_are_the_sampled_ones(self, clip: Path) -> None:
        sampling = VideoSampling(fps=2.0, min_pixels=32 * 32, max_pixels=64 * 64)
        ref = sample_clip(clip, sampling=sampling)
        frames = load_frames(ref)
        assert frames.dtype == np.uint8
        assert frames.shape == (6, *ref.frame_hw, 3)
        brightness = frames.mean(axis=(1, 2, 3))
        assert (np.diff(brightness) > 10).all(), "the clip gets lighter from frame to frame"

    def test_twice_gives_equal_bytes(self, clip: Path) -> None:
        ref = sample_clip(clip, sampling=VideoSampling())
        assert load_frames(ref).tobytes() == load_frames(ref).tobytes()

    def test_both_decoders_give_equal_bytes(self, clip: Path) -> None:
        ref = sample_clip(clip, sampling=TWO_FPS)
        assert ref.decoder == "decord"
        other = ref.model_copy(update={"decoder": "pyav"})
        assert load_frames(other).tobytes() == load_frames(ref).tobytes()

    def test_at_once_gives_what_sampling_and_loading_give(self, clip: Path) -> None:
        ref = sample_clip(clip, sampling=TWO_FPS)
        found = decode(clip, sampling=TWO_FPS)
        assert found.clip == ref
        assert found.frames.tobytes() == load_frames(ref).tobytes()

    def test_changed_file_is_refused(self, tmp_path: Path) -> None:
        file = make_clip(tmp_path / "clip.mp4", num_frames=24)
        ref = sample_clip(file, sampling=VideoSampling())
        make_clip(file, num_frames=32)
        with pytest.raises(VideoError, match=r"clip\.mp4: found sha256 .*wanted .*changed"):
            load_frames(ref)

    def test_vanished_file_is_named(self, tmp_path: Path) -> None:
        file = make_clip(tmp_path / "clip.mp4", num_frames=24)
        ref = sample_clip(file, sampling=VideoSampling())
        file.unlink()
        with pytest.raises(VideoError, match=r"clip\.mp4: No such file"):
            load_frames(ref)


class TestProcessorMetadata:
    def test_forbids_a_second_sampling(self, clip: Path) -> None:
        ref = sample_clip(clip, sampling=TWO_FPS)
        metadata = processor_metadata(ref)
        assert metadata["do_sample_frames"] is False
        assert metadata["frames_indices"] == list(ref.frame_indices)
        assert (metadata["fps"], metadata["duration"]) == (8.0, 3.0)

    def test_indices_stay_whole_where_times_are_rounded(self, clip: Path) -> None:
        """Matroska rounds to milliseconds: that is no variable rate."""
        ref = sample_clip(clip, sampling=TWO_FPS)
        rounded = tuple(round(time_s, 2) for time_s in ref.frame_times_s)
        metadata = processor_metadata(ref.model_copy(update={"frame_times_s": rounded}))
        assert metadata["frames_indices"] == list(ref.frame_indices)


class TestNotAVideo:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(VideoError, match=r"none\.mp4: No such file"):
            sample_clip(tmp_path / "none.mp4", sampling=TWO_FPS)

    def test_zero_bytes(self, tmp_path: Path) -> None:
        file = tmp_path / "empty.mp4"
        file.touch()
        with pytest.raises(VideoError, match=r"empty\.mp4: found 0 bytes"):
            sample_clip(file, sampling=TWO_FPS)

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(VideoError, match="found a folder or device"):
            sample_clip(tmp_path, sampling=TWO_FPS)

    def test_device(self) -> None:
        with pytest.raises(VideoError, match="found a folder or device"):
            sample_clip("/dev/zero", sampling=TWO_FPS)

    def test_text(self, tmp_path: Path) -> None:
        file = tmp_path / "prose.mp4"
        file.write_text("This is not a video.\n" * 100)
        for read in (probe, lambda path: decode(path, sampling=TWO_FPS)):
            with pytest.raises(VideoError, match=r"prose\.mp4: PyAV cannot read it as a video"):
                read(file)

    @pytest.mark.parametrize(
        "playlist", ["#EXTM3U\n#EXTINF:1,\n{}\n", "ffconcat version 1.0\nfile {}\n"]
    )
    def test_playlist_opens_no_other_file(self, clip: Path, playlist: str) -> None:
        file = clip.with_name("list.mp4")
        file.write_text(playlist.format(clip.name))
        with pytest.raises(VideoError, match=r"list\.mp4: PyAV cannot read it as a video"):
            probe(file)

    def test_name_that_looks_like_a_protocol_is_a_path(
        self, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("concat:a.mp4").write_bytes(clip.read_bytes())
        assert decode("concat:a.mp4", sampling=TWO_FPS).frames.shape[0] == 6

    def test_one_frame(self, tmp_path: Path) -> None:
        file = make_clip(tmp_path / "one.mp4", num_frames=1)
        with pytest.raises(VideoError, match=r"one\.mp4: found 1 frame\(s\), wanted at least"):
            sample_clip(file, sampling=TWO_FPS)
