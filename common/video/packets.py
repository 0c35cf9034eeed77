"""What a packet shows, read from its first bits: bytes of a packet → `Shown`, nothing decoded.

A packet is not a picture: VP8, VP9 and AV1 store reference frames that nobody sees, an access unit
of H.264 may be half a frame, and a decoder cannot start everywhere. `common.video.index` takes
packets for pictures only where each one, read here, shows exactly one.

Written from the formats: RFC 6386 (VP8) 9.1, VP9 bitstream 6.2 and annex B, AV1 5.3 to 5.9,
ITU-T H.264 7.3.1 and H.265 7.3.1.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

Bytes = memoryview | bytes

_LENGTH_AT = {"h264": 4, "hevc": 21}
"""Where a decoder configuration record says how long lengths are (ISO 14496-15)."""
_CONFIGURATION_VERSION = 1
_IDR, _SLICES = 5, (1, 2, 5)
_VCL_END, _BLA, _IRAP, _ENDS = 32, range(16, 19), range(16, 24), (36, 37)
_AV1_SEQUENCE, _AV1_HEADERS = 1, (3, 6)


@dataclass(frozen=True, slots=True)
class Shown:
    """What is seen of one packet."""

    pictures: int
    """How many are shown: 0 of a hidden reference frame, 2 of a frame in two fields."""
    starts: bool
    """Whether a decoder that starts here shows this picture, and all that are shown later."""
    restarts: bool = False
    """Whether pictures behind it that are shown earlier may be dropped, wherever it stands."""


Look = Callable[[Bytes], Shown]


def look_into(codec: str, *, extradata: bytes) -> Look | None:
    """How packets of a codec are read; None where they have to be decoded.

    Args:
        codec: FFmpeg's name.
        extradata: what the container says of the stream as a whole.
    """
    if codec in _LENGTH_AT:
        if len(extradata) <= _LENGTH_AT[codec] or extradata[0] != _CONFIGURATION_VERSION:
            return None  # start codes instead of lengths: as in a broadcast
        length_bytes = (extradata[_LENGTH_AT[codec]] & 3) + 1
        units = _h264 if codec == "h264" else _hevc
        return lambda packet: units(packet, length_bytes)
    return {"vp8": _vp8, "vp9": _vp9, "av1": _av1}.get(codec)


def _units(packet: Bytes, length_bytes: int) -> Iterator[Bytes]:
    """NAL units behind their lengths; one that claims more than there is ends the packet."""
    at, end = 0, len(packet)
    while at + length_bytes < end:
        length = int.from_bytes(packet[at : at + length_bytes], "big")
        at += length_bytes
        if length >= 3 and at + length <= end:
            yield packet[at : at + 3]
        at += length


def _h264(packet: Bytes, length_bytes: int) -> Shown:
    """The first slice of a picture has first_mb_in_slice 0, a single set bit."""
    pictures, starts = 0, False
    for unit in _units(packet, length_bytes):
        kind = unit[0] & 31
        if kind in _SLICES:
            pictures += unit[1] >> 7
            starts = starts or kind == _IDR
    return Shown(pictures, starts)


def _hevc(packet: Bytes, length_bytes: int) -> Shown:
    """Pictures of the base layer; leading ones after BLA, or after the end of a sequence, may be
    dropped."""
    pictures, starts, restarts = 0, False, False
    for unit in _units(packet, length_bytes):
        kind, layer = unit[0] >> 1 & 63, (unit[0] & 1) << 5 | unit[1] >> 3
        restarts = restarts or kind in _ENDS or kind in _BLA
        if layer == 0 and kind < _VCL_END:
            pictures += unit[2] >> 7
            starts = starts or kind in _IRAP
    return Shown(pictures, starts, restarts)


def _vp8(packet: Bytes) -> Shown:
    return Shown(packet[0] >> 4 & 1, not packet[0] & 1)


def _vp9(packet: Bytes) -> Shown:
    seen = [_vp9_frame(packet[at]) for at in _vp9_frames(packet)]
    return Shown(sum(shown for shown, _ in seen), any(shown and key for shown, key in seen))


def _vp9_frames(packet: Bytes) -> Iterator[int]:
    """Where the frames of a packet begin: the index of a superframe stands at its end."""
    marker = packet[-1]
    count, size_bytes = (marker & 7) + 1, (marker >> 3 & 3) + 1
    index = len(packet) - 2 - count * size_bytes
    if marker >> 5 != 0b110 or index < 0 or packet[index] != marker:
        yield 0
        return
    at = 0
    for number in range(count):
        if at < index:
            yield at
        sizes = index + 1 + number * size_bytes
        at += int.from_bytes(packet[sizes : sizes + size_bytes], "little")


def _vp9_frame(head: int) -> tuple[bool, bool]:
    """Whether a frame is shown, and is a key frame: marker (2), profile (2, a third bit in
    profile 3), show_existing_frame, frame_type, show_frame."""
    if head >> 4 & 3 == 3:
        head <<= 1  # a reserved bit
    if head >> 3 & 1:
        return True, False
    return bool(head >> 1 & 1), not head >> 2 & 1


def _av1(packet: Bytes) -> Shown:
    """Frame headers of a temporal unit: show_existing_frame, frame_type (2), show_frame."""
    pictures, starts, is_still = 0, False, False
    for kind, payload in _av1_units(packet):
        if kind == _AV1_SEQUENCE:
            is_still = bool(payload[0] & 0b1000)
        elif kind in _AV1_HEADERS:
            head = payload[0]
            shown = is_still or head >> 7 or head >> 4 & 1
            pictures += bool(shown)
            key = is_still or not (head >> 7 or head >> 5 & 3)
            starts = starts or bool(shown and key)
    return Shown(pictures, starts)


def _av1_units(packet: Bytes) -> Iterator[tuple[int, Bytes]]:
    at = 0
    while at < len(packet):
        head = packet[at]
        at += 2 if head & 4 else 1
        size = len(packet) - at
        if head & 2:
            size, at = _leb128(packet, at)
        if size > 0 and at < len(packet):
            yield head >> 3 & 15, packet[at : at + size]
        at += size


def _leb128(packet: Bytes, at: int) -> tuple[int, int]:
    """An integer of seven bits a byte, and where it ends."""
    found = 0
    for place in range(8):
        if at >= len(packet):
            break
        byte = packet[at]
        at += 1
        found |= (byte & 127) << 7 * place
        if not byte & 128:
            break
    return found, at
