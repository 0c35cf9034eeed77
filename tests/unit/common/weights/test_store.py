"""The rendezvous store: only for who knows the secret, only at the address it was given."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from common.errors import WeightError
from common.weights import store as stores
from common.weights.group import WeightGroup
from common.weights.store import StoreServer, connect_store

TIMEOUT_S = 5.0


HOSTS = ["127.0.0.1"] + ["::1"] * socket.has_dualstack_ipv6()


@pytest.fixture
def server() -> Iterator[StoreServer]:
    server = StoreServer("127.0.0.1")
    yield server
    server.close()


@pytest.fixture
def theirs(server: StoreServer) -> Iterator[stores.GroupStore]:
    """What a receiver has."""
    store = connect_store("127.0.0.1", port=server.port, secret=server.secret, timeout_s=TIMEOUT_S)
    yield store
    store.close()


def test_both_ends_see_one_set_of_values(server: StoreServer, theirs: stores.GroupStore) -> None:
    ours = server.store(timeout_s=TIMEOUT_S)
    ours.set("address", b"\x00\xff")
    assert theirs.get("address") == b"\x00\xff"
    assert theirs.add("count", 2) == 2
    assert ours.add("count", 3) == 5
    assert ours.check(["address", "count"])
    assert not theirs.check(["address", "other"])
    assert theirs.num_keys() == 2
    assert theirs.delete_key("address")
    assert not ours.check(["address"])


def test_a_value_is_waited_for(server: StoreServer, theirs: stores.GroupStore) -> None:
    ours = server.store(timeout_s=TIMEOUT_S)
    threading.Timer(0.1, lambda: ours.set("late", b"1")).start()
    assert theirs.get("late") == b"1"
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="never"):
        theirs.wait(["never"], timedelta(seconds=0.2))
    assert time.monotonic() - started < TIMEOUT_S
    theirs.set("still", b"usable")


def test_who_does_not_know_the_secret_gets_nothing(server: StoreServer) -> None:
    with pytest.raises(WeightError, match="no weight store"):
        connect_store("127.0.0.1", port=server.port, secret="00" * 32, timeout_s=TIMEOUT_S)


def test_who_does_not_know_it_is_told_nothing_either() -> None:
    """A receiver that was sent to somebody else's port."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:

        def answer() -> None:
            with stranger.accept()[0] as connection:
                connection.sendall(bytes(32))
                connection.recv(1000)
                connection.sendall(bytes(32))

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(WeightError, match="does not know the secret"):
            connect_store(
                "127.0.0.1",
                port=stranger.getsockname()[1],
                secret="5e" * 32,
                timeout_s=TIMEOUT_S,
            )


def test_silent_and_loud_strangers_keep_nobody_out(
    server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "HANDSHAKE_S", 0.2)
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    loud = socket.create_connection(("127.0.0.1", server.port))
    loud.sendall(b"GET / HTTP/1.1\r\n" * 10_000)
    honest = connect_store("127.0.0.1", port=server.port, secret=server.secret, timeout_s=TIMEOUT_S)
    honest.set("key", b"value")
    honest.close()
    silent[0].settimeout(TIMEOUT_S)
    assert len(silent[0].recv(100)) == stores.NONCE_BYTES, "a challenge"
    assert silent[0].recv(100) == b"", "and then the connection is closed"
    for connection in (*silent, loud):
        connection.close()


def test_it_listens_at_its_address_alone(server: StoreServer) -> None:
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()
    listening = [line.split()[1] for line in lines if line.split()[3] == "0A"]
    ours = [address for address in listening if address.endswith(f":{server.port:04X}")]
    assert ours == [f"0100007F:{server.port:04X}"]


@pytest.mark.parametrize("host", HOSTS)
def test_members_meet_and_send_over_either_family_of_addresses(host: str) -> None:
    server = StoreServer(host)
    received = [torch.zeros(4, dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8)]

    def member(rank: int) -> None:
        store = (
            server.store(timeout_s=20)
            if rank == 0
            else connect_store(host, port=server.port, secret=server.secret, timeout_s=20)
        )
        group = WeightGroup.join(
            store,
            host=host,
            port=server.port,
            rank=rank,
            world_size=2,
            device=torch.device("cpu"),
            timeout_s=20,
            deadline_s=20,
        )
        if rank == 0:
            received[0].fill_(7)
        group.broadcast(received[rank])
        group.close()

    with ThreadPoolExecutor() as pool:
        list(pool.map(member, range(2)))
    server.close()
    assert received[1].tolist() == [7, 7, 7, 7]


def test_a_store_that_is_not_there_is_named_with_brackets() -> None:
    with pytest.raises(WeightError, match=r"no weight store at \[::1\]:1 within"):
        connect_store("::1", port=1, secret="00" * 32, timeout_s=TIMEOUT_S)
