"""What packets show, by hand: bits as the formats define them, and bytes that are none of it."""

import random

import pytest

from common.video.packets import Shown, look_into

AVCC = bytes([1, 100, 0, 10, 0xFF])
"""Lengths of four bytes."""
HVCC = bytes([1, *bytes(20), 0xFF])


def h264(*units: bytes) -> Shown:
    return seen("h264", AVCC, units)


def hevc(*units: bytes) -> Shown:
    return seen("hevc", HVCC, units)


def seen(codec: str, extradata: bytes, units: tuple[bytes, ...]) -> Shown:
    packet = b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)
    return look(codec, extradata, packet)


def look(codec: str, extradata: bytes, packet: bytes) -> Shown:
    found = look_into(codec, extradata=extradata)
    assert found is not None
    return found(memoryview(packet))


class TestH264:
    """A unit's first byte ends in its type; a slice's first macroblock is 0 as one set bit."""

    IDR, SLICE, NEXT_SLICE, SEI = b"\x65\x88\x00", b"\x41\x9a\x00", b"\x41\x4a\x00", b"\x06\x80\x00"

    def test_slices_of_one_picture_are_one(self) -> None:
        assert h264(self.SEI, self.SLICE, self.NEXT_SLICE, self.NEXT_SLICE) == Shown(1, False)

    def test_an_idr_picture_starts(self) -> None:
        assert h264(self.SEI, self.IDR) == Shown(1, True)

    def test_two_fields_are_two(self) -> None:
        assert h264(self.IDR, self.SLICE) == Shown(2, True)

    def test_parameters_alone_show_nothing(self) -> None:
        assert h264(self.SEI) == Shown(0, False)

    def test_a_length_past_the_end_is_no_picture(self) -> None:
        assert look("h264", AVCC, b"\x00\x00\x10\x00" + self.IDR) == Shown(0, False)

    @pytest.mark.parametrize("extradata", [b"", b"\x00\x00\x00\x01\x67", b"\x01\x64"])
    def test_streams_with_start_codes_are_not_read(self, extradata: bytes) -> None:
        assert look_into("h264", extradata=extradata) is None


class TestHevc:
    """Two bytes before a unit: type in six bits, layer in six; then first_slice_segment_in_pic."""

    CRA, TRAIL, NEXT = b"\x2a\x01\x80", b"\x02\x01\xd0", b"\x02\x01\x40"
    BLA, END, OTHER_LAYER = b"\x20\x01\x80", b"\x48\x01\x00", b"\x02\x09\x80"

    def test_segments_of_one_picture_are_one(self) -> None:
        assert hevc(self.TRAIL, self.NEXT) == Shown(1, False)

    def test_a_picture_of_random_access_starts(self) -> None:
        assert hevc(self.CRA) == Shown(1, True)

    def test_where_leading_pictures_may_be_dropped_it_begins_anew(self) -> None:
        assert hevc(self.BLA) == Shown(1, True, True)
        assert hevc(self.TRAIL, self.END) == Shown(1, False, True)

    def test_a_second_view_is_no_second_picture(self) -> None:
        assert hevc(self.TRAIL, self.OTHER_LAYER) == Shown(1, False)


class TestVp8:
    """First byte: not a key frame, version (3), shown."""

    @pytest.mark.parametrize(
        ("head", "shown"),
        [(0x10, Shown(1, True)), (0x11, Shown(1, False)), (0x01, Shown(0, False))],
    )
    def test_the_first_byte_says_it(self, head: int, shown: Shown) -> None:
        assert look("vp8", b"", bytes([head, 0, 0])) == shown


class TestVp9:
    """Bits: marker 10, profile (2), show_existing, not a key frame, shown, error resilient."""

    KEY, SHOWN, HIDDEN, EXISTING = 0b1000_0010, 0b1000_0110, 0b1000_0100, 0b1000_1000
    PROFILE_3_SHOWN, PROFILE_3_HIDDEN, PROFILE_3_KEY = 0b1011_0011, 0b1011_0010, 0b1011_0001

    @staticmethod
    def superframe(*frames: bytes) -> bytes:
        """Frames, then their sizes in one byte each between two markers."""
        marker = bytes([0b1100_0000 | len(frames) - 1])
        return b"".join(frames) + marker + bytes(len(frame) for frame in frames) + marker

    @pytest.mark.parametrize(
        ("head", "shown"),
        [
            (KEY, Shown(1, True)),
            (SHOWN, Shown(1, False)),
            (HIDDEN, Shown(0, False)),
            (EXISTING, Shown(1, False)),
            (PROFILE_3_SHOWN, Shown(1, False)),
            (PROFILE_3_KEY, Shown(1, True)),
            (PROFILE_3_HIDDEN, Shown(0, False)),
        ],
    )
    def test_a_frame_alone(self, head: int, shown: Shown) -> None:
        assert look("vp9", b"", bytes([head, 1, 2, 3])) == shown

    def test_a_superframe_holds_hidden_frames_beside_the_shown_one(self) -> None:
        both = self.superframe(bytes([self.HIDDEN, 9, 9]), bytes([self.SHOWN, 9]))
        assert look("vp9", b"", both) == Shown(1, False)

    def test_a_superframe_of_two_shown_frames_shows_two(self) -> None:
        both = self.superframe(bytes([self.KEY, 9, 9]), bytes([self.EXISTING, 9]))
        assert look("vp9", b"", both) == Shown(2, True)


class TestAv1:
    """Units with their size: type in four bits; a header's first bits are show_existing, type (2),
    shown."""

    DELIMITER, SEQUENCE, STILL = b"\x12\x00", b"\x0a\x01\x00", b"\x0a\x01\x18"
    KEY, SHOWN, HIDDEN, EXISTING = (
        b"\x32\x01\x10",
        b"\x32\x01\x30",
        b"\x32\x01\x20",
        b"\x1a\x01\x80",
    )

    def of(self, *units: bytes) -> Shown:
        return look("av1", b"", b"".join(units))

    def test_a_key_frame_starts(self) -> None:
        assert self.of(self.DELIMITER, self.SEQUENCE, self.KEY) == Shown(1, True)

    def test_hidden_frames_beside_the_shown_one(self) -> None:
        assert self.of(self.DELIMITER, self.HIDDEN, self.HIDDEN, self.SHOWN) == Shown(1, False)

    def test_one_that_was_hidden_is_shown(self) -> None:
        assert self.of(self.DELIMITER, self.EXISTING) == Shown(1, False)

    def test_hidden_frames_alone(self) -> None:
        assert self.of(self.DELIMITER, self.HIDDEN) == Shown(0, False)

    def test_a_still_picture_has_no_such_bits(self) -> None:
        assert self.of(self.STILL, b"\x32\x01\x00") == Shown(1, True)

    def test_a_unit_without_size_ends_the_packet(self) -> None:
        assert self.of(self.DELIMITER, b"\x30\x30\x00") == Shown(1, False)


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp8", "vp9", "av1"])
def test_noise_is_read_as_something(codec: str) -> None:
    noise = random.Random(0)
    extradata = {"h264": AVCC, "hevc": HVCC}.get(codec, b"")
    for _ in range(300):
        packet = noise.randbytes(noise.randint(1, 40))
        assert look(codec, extradata, packet).pictures >= 0


def test_other_codecs_are_not_read() -> None:
    assert look_into("mpeg4", extradata=b"") is None
