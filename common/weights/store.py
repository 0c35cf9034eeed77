"""Where the members of a weight group meet: a key-value store that asks for a secret.

torch's own TCPStore listens on every interface and serves whoever connects. This one listens on the
learner's address alone and answers a connection only after both sides have proven the secret that
travels in the authenticated join message (HMAC-SHA256 over the other's nonce; the secret itself
never travels here). A store lives for one join: a few hundred small values.

Every frame is a length (4 bytes, big-endian) and JSON; values are base64. Nothing is pickled.
"""

import base64
import hmac
import json
import secrets
import socket
import socketserver
import struct
import threading
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import Store

from common.errors import WeightError
from common.rest.address import family_of, host_port

NONCE_BYTES = 32
SECRET_BYTES = 32
MAX_FRAME_BYTES = 1 << 20
HANDSHAKE_S = 5.0
"""A connection that has not proven itself by then is closed."""


class _Values:
    """The values of one store, shared by the connections of its server."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def do(self, op: str, *, keys: list[str], value: bytes, timeout_s: float) -> Any:
        """Carry out one operation of `Store`.

        Raises:
            TimeoutError: keys were not set in time.
        """
        with self._changed:
            if op == "set":
                self._values[keys[0]] = value
            elif op == "add":
                total = int(self._values.get(keys[0], b"0")) + int(value)
                self._values[keys[0]] = str(total).encode()
                self._changed.notify_all()
                return total
            elif op == "check":
                return all(key in self._values for key in keys)
            elif op == "delete":
                return self._values.pop(keys[0], None) is not None
            elif op == "count":
                return len(self._values)
            elif op in ("get", "wait"):
                if not self._changed.wait_for(
                    lambda: all(key in self._values for key in keys), timeout_s
                ):
                    raise TimeoutError(f"{keys} not set within {timeout_s} s")
                return self._values[keys[0]] if op == "get" else None
            else:
                raise ValueError(f"found operation {op!r}")
            self._changed.notify_all()
            return None

    def close(self) -> None:
        """Nothing to close: the server goes on."""


class GroupStore(Store):
    """torch's `Store`, over a connection to a `StoreServer` or, beside it, without one."""

    def __init__(self, values: "_Values | _Connection", *, timeout_s: float) -> None:
        super().__init__()
        self._target = values
        self._timeout_s = timeout_s

    def set_timeout(self, timeout: timedelta) -> None:
        self._timeout_s = timeout.total_seconds()

    def set(self, key: str, value: bytes | str) -> None:
        self._do("set", [key], value if isinstance(value, bytes) else value.encode())

    def get(self, key: str) -> bytes:
        found: bytes = self._do("get", [key])
        return found

    def add(self, key: str, amount: int) -> int:
        return int(self._do("add", [key], str(amount).encode()))

    def check(self, keys: list[str]) -> bool:
        return bool(self._do("check", list(keys)))

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        self._do("wait", list(keys), timeout_s=timeout.total_seconds() if timeout else None)

    def delete_key(self, key: str) -> bool:
        return bool(self._do("delete", [key]))

    def num_keys(self) -> int:
        return int(self._do("count", []))

    def close(self) -> None:
        """Close a receiver's connection; the server's own view has none."""
        self._target.close()

    def _do(
        self, op: str, keys: list[str], value: bytes = b"", *, timeout_s: float | None = None
    ) -> Any:
        return self._target.do(op, keys=keys, value=value, timeout_s=timeout_s or self._timeout_s)


class _Connection:
    """A receiver's end: one request at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = threading.Lock()

    def do(self, op: str, *, keys: list[str], value: bytes, timeout_s: float) -> Any:
        with self._lock:
            self._socket.settimeout(timeout_s + HANDSHAKE_S)
            text = base64.b64encode(value).decode()
            _send(self._socket, {"op": op, "keys": keys, "value": text, "timeout_s": timeout_s})
            answer = _receive(self._socket)
        if "error" in answer:
            raise TimeoutError(answer["error"])
        found = answer["found"]
        return base64.b64decode(found) if op == "get" else found

    def close(self) -> None:
        self._socket.close()


class StoreServer:
    """The learner's store on a free port; a context manager, or `close()` it."""

    def __init__(self, host: str) -> None:
        self.secret = secrets.token_hex(SECRET_BYTES)
        self._values = values = _Values()
        secret = bytes.fromhex(self.secret)

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                _serve(self.request, values, secret)

        class Server(socketserver.ThreadingTCPServer):
            address_family = family_of(host)
            daemon_threads = True
            allow_reuse_address = False

            def handle_error(self, *_: object) -> None:  # a connection that broke is the peer's
                return

        self._server = Server((host, 0), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def store(self, *, timeout_s: float) -> GroupStore:
        """The learner's own view."""
        return GroupStore(self._values, timeout_s=timeout_s)

    def close(self) -> None:
        """Stop listening; stores in use go on until their connections end."""
        self._server.shutdown()
        self._server.server_close()


def connect_store(host: str, *, port: int, secret: str, timeout_s: float) -> GroupStore:
    """A receiver's connection to the learner's store.

    Raises:
        WeightError: nobody listens there, or who listens does not know the secret.
    """
    connection = None
    try:
        connection = socket.create_connection((host, port), timeout_s)
        connection.settimeout(HANDSHAKE_S)
        _prove_to_server(connection, bytes.fromhex(secret))
    except (OSError, ValueError) as error:
        if connection is not None:
            connection.close()
        raise WeightError(
            f"no weight store at {host_port(host, port)} within {timeout_s} s: {error}"
        ) from error
    return GroupStore(_Connection(connection), timeout_s=timeout_s)


def _serve(connection: socket.socket, values: _Values, secret: bytes) -> None:
    connection.settimeout(HANDSHAKE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not _prove_to_client(connection, secret):
        return
    connection.settimeout(None)
    # A machine that vanished closes nothing: without this its connection would wait for ever.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    while True:
        request = _receive(connection)
        try:
            found = values.do(
                request["op"],
                keys=request["keys"],
                value=base64.b64decode(request["value"]),
                timeout_s=request["timeout_s"],
            )
        except TimeoutError as error:
            _send(connection, {"error": str(error)})
            continue
        _send(
            connection,
            {"found": base64.b64encode(found).decode() if isinstance(found, bytes) else found},
        )


def _mac(secret: bytes, role: bytes, nonce: bytes) -> bytes:
    return hmac.digest(secret, role + nonce, "sha256")


def _prove_to_client(connection: socket.socket, secret: bytes) -> bool:
    nonce = secrets.token_bytes(NONCE_BYTES)
    connection.sendall(nonce)
    theirs, proof = _exactly(connection, NONCE_BYTES), _exactly(connection, 32)
    if not hmac.compare_digest(proof, _mac(secret, b"client", nonce)):
        return False
    connection.sendall(_mac(secret, b"server", theirs))
    return True


def _prove_to_server(connection: socket.socket, secret: bytes) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    nonce = secrets.token_bytes(NONCE_BYTES)
    theirs = _exactly(connection, NONCE_BYTES)
    connection.sendall(nonce + _mac(secret, b"client", theirs))
    if not hmac.compare_digest(_exactly(connection, 32), _mac(secret, b"server", nonce)):
        raise ValueError("it does not know the secret of the join message")


def _send(connection: socket.socket, value: Any) -> None:
    body = json.dumps(value).encode()
    connection.sendall(struct.pack(">I", len(body)) + body)


def _receive(connection: socket.socket) -> Any:
    (length,) = struct.unpack(">I", _exactly(connection, 4))
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"found a frame of {length} bytes, wanted at most {MAX_FRAME_BYTES}")
    return json.loads(_exactly(connection, length))


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts, missing = [], count
    while missing:
        part = connection.recv(missing)
        if not part:
            raise ConnectionError("the other side closed the connection")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
