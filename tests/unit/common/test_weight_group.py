"""Weights arrive whole and verified, or not at all."""

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from common.errors import WeightError
from common.weight_group import (
    ALIGNMENT_BYTES,
    DIGEST_BYTES,
    Layout,
    WeightGroup,
    connect_store,
    describe,
    open_store,
    receive,
    send,
)

TIMEOUT_S = 10.0
SLICES = [
    describe("embed", shape=(1000, 33), dtype=torch.float32),
    describe("scale", shape=(7,), dtype=torch.bfloat16),
    describe("scalar", shape=(), dtype=torch.float32),
]


def layout(bucket_bytes: int = 50_000) -> Layout:
    return Layout.of(SLICES, bucket_bytes=bucket_bytes)


def stream() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 255, (layout().num_bytes,), dtype=torch.uint8, generator=generator)


class Receiver(threading.Thread):
    """One receiving member, in a thread of its own."""

    def __init__(self, host: str, *, port: int, rank: int, world_size: int) -> None:
        super().__init__(daemon=True)
        self._host, self._port, self._rank, self._world_size = host, port, rank, world_size
        self.landed = torch.zeros(layout().num_bytes, dtype=torch.uint8)
        self.digest: str | None = None
        self.error: WeightError | None = None

    def run(self) -> None:
        try:
            store = connect_store(self._host, port=self._port, timeout_s=TIMEOUT_S)
            group = WeightGroup.join(
                store,
                rank=self._rank,
                world_size=self._world_size,
                timeout_s=TIMEOUT_S,
                device="cpu",
            )
            self.digest = receive(group, layout=layout(), stream_N=self.landed, device="cpu")
        except WeightError as error:
            self.error = error


def has_ipv6() -> bool:
    """Whether this machine has a loopback address of that family."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.fixture
def host() -> str:
    """Where the sender's store is; a test may name another."""
    return "127.0.0.1"


@pytest.fixture
def sender(host: str) -> Iterator[Callable[[int], tuple[WeightGroup, list[Receiver]]]]:
    """Number of receivers → the sender's group and its receivers."""
    groups: list[WeightGroup] = []

    def form(count: int) -> tuple[WeightGroup, list[Receiver]]:
        store = open_store(host, timeout_s=TIMEOUT_S)
        members = [
            Receiver(host, port=store.port, rank=r + 1, world_size=count + 1) for r in range(count)
        ]
        for member in members:
            member.start()
        group = WeightGroup.join(
            store, rank=0, world_size=count + 1, timeout_s=TIMEOUT_S, device="cpu"
        )
        groups.append(group)
        return group, members

    yield form
    for group in groups:
        group.close()


def test_layout_aligns_tensors_and_gives_them_back_as_views() -> None:
    laid = layout()
    assert all(offset % ALIGNMENT_BYTES == 0 for offset in laid.offsets)
    assert laid.buckets[0] == (0, 50_000)
    assert laid.buckets[-1][1] == laid.num_bytes
    raw = stream()
    views = dict(laid.views(raw))
    assert views["embed"].shape == (1000, 33)
    assert views["scale"].dtype == torch.bfloat16
    assert views["scalar"].shape == ()
    assert views["embed"].data_ptr() == raw.data_ptr()


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")),
    ],
)
def test_every_receiver_gets_the_bytes_and_the_same_digest(
    sender: Callable[[int], tuple[WeightGroup, list[Receiver]]],
) -> None:
    group, members = sender(2)
    sent = stream()
    digest, num_bytes = send(group, buckets=(sent[a:b] for a, b in layout().buckets), device="cpu")
    for member in members:
        member.join(TIMEOUT_S)
        assert member.error is None
        assert member.digest == digest
        assert torch.equal(member.landed, sent)
    assert num_bytes == sent.numel()
    assert len(bytes.fromhex(digest)) == DIGEST_BYTES


def test_a_stream_that_differs_from_its_digest_is_refused(
    sender: Callable[[int], tuple[WeightGroup, list[Receiver]]],
) -> None:
    group, (member,) = sender(1)
    for start, end in layout().buckets:
        group.broadcast(stream()[start:end])
    group.broadcast(torch.zeros(DIGEST_BYTES, dtype=torch.uint8))
    member.join(TIMEOUT_S)
    assert member.error is not None
    assert "not applied" in str(member.error)


def test_a_sender_that_goes_away_ends_the_receiver_with_an_error(
    sender: Callable[[int], tuple[WeightGroup, list[Receiver]]],
) -> None:
    group, (member,) = sender(1)
    start, end = layout().buckets[0]
    group.broadcast(stream()[start:end])
    group.close()
    member.join(2 * TIMEOUT_S)
    assert isinstance(member.error, WeightError)


def test_a_group_that_stays_incomplete_is_given_up() -> None:
    store = open_store("127.0.0.1", timeout_s=1.0)
    with pytest.raises(WeightError, match="rank 0 of 2"):
        WeightGroup.join(store, rank=0, world_size=2, timeout_s=1.0, device="cpu")
