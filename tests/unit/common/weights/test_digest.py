"""What a digest has to notice: one bit, a swap, another description."""

import pytest
import torch

from common.weights.digest import bucket_digest, positional_digest, stream_digest
from common.weights.layout import Layout, describe

digests = pytest.mark.parametrize("digest", [bucket_digest, positional_digest])


def words(count: int = 4096) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**31), 2**31, (count,), dtype=torch.int32, generator=generator)


@digests
def test_every_bit_counts(digest: object) -> None:
    assert callable(digest)
    before = digest(words().view(torch.uint8))
    for word, bit in ((0, 0), (17, 31), (4095, 16)):
        changed = words()
        changed[word] ^= torch.tensor(1 << bit if bit < 31 else -(2**31), dtype=torch.int32)
        assert not torch.equal(digest(changed.view(torch.uint8)), before)


@digests
def test_place_counts(digest: object) -> None:
    assert callable(digest)
    before = digest(words().view(torch.uint8))
    for first, second in ((0, 1), (0, 2048), (1000, 3000)):
        swapped = words()
        swapped[[first, second]] = swapped[[second, first]]
        assert not torch.equal(digest(swapped.view(torch.uint8)), before)


def test_pieces_of_the_sum_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = positional_digest(words().view(torch.uint8))
    monkeypatch.setattr("common.weights.digest._CHUNK_WORDS", 100)
    assert torch.equal(positional_digest(words().view(torch.uint8)), whole)


def test_names_shapes_dtypes_order_and_buckets_are_part_of_the_closing_digest() -> None:
    bucket = bucket_digest(words().view(torch.uint8))

    def closing(*slices: object, bucket_bytes: int = 16_384) -> str:
        return stream_digest(Layout.of(slices, bucket_bytes=bucket_bytes), [bucket])  # type: ignore[arg-type]

    a = describe("a", shape=(2048,), dtype=torch.int32)
    b = describe("b", shape=(2048,), dtype=torch.int32)
    wide = describe("a", shape=(2, 1024), dtype=torch.int32)
    other = describe("a", shape=(2048,), dtype=torch.float32)
    found = [closing(a, b), closing(b, a), closing(wide, b), closing(other, b)]
    found.append(closing(a, b, bucket_bytes=32_768))
    assert len(set(found)) == len(found)
    assert closing(a, b) == found[0]


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda:0"], indirect=True)
def test_a_gpu_sums_as_a_cpu_does(device: str) -> None:
    bucket = words(5 * 2**20).view(torch.uint8)
    assert torch.equal(bucket_digest(bucket.to(device)).cpu(), positional_digest(bucket))
