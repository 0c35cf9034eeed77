"""A vLLM worker's end of the link: joins, receives and leaves when the replica says so.

    serve_link(path, worker=0, receiver=receiver)      # returns at once

Each thing that takes time has a thread of its own, which is left behind when it is given up.
"""

import json
import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

from common.errors import GroupError
from common.weights.messages import JoinWeightGroup, UpdateWeights
from common.weights.receiver import GIVEN_UP, Receiver

logger = logging.getLogger(__name__)


def serve_link(path: str, *, worker: int, receiver: Receiver) -> None:
    """Connect to the replica and do what it asks, in threads; called once in each worker."""
    link = _Link(path, worker=worker, receiver=receiver)
    threading.Thread(target=link.run, daemon=True, name="weights").start()


class _Link:
    """A worker's end."""

    def __init__(self, path: str, *, worker: int, receiver: Receiver) -> None:
        self._worker, self._receiver = worker, receiver
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._sending = threading.Lock()
        self._under_way: set[int] = set()

    def run(self) -> None:
        self._write({"worker": self._worker})
        for line in self._socket.makefile("rb"):
            self._begin(json.loads(line))

    def _begin(self, asked: dict[str, Any]) -> None:
        call, action = asked["call"], asked["action"]
        if action == "leave":
            self._leave(call)
            return
        self._under_way.add(call)
        doing = self._join if action == "join" else self._receive
        threading.Thread(
            target=self._answer, args=(call, doing, asked["body"]), daemon=True, name=action
        ).start()

    def _leave(self, call: int) -> None:
        """What is under way gets its answer now; its thread ends when its wait does."""
        self._receiver.abandon()
        for other in list(self._under_way):
            self._reply(other, error=GIVEN_UP, group=True)
        self._under_way.add(call)
        self._reply(call)

    def _answer(self, call: int, doing: Callable[[Any], None], body: Any) -> None:
        try:
            doing(body)
        except GroupError as error:
            self._reply(call, error=str(error), group=True)
        except Exception as error:  # whatever it is, the learner has to hear of it
            logger.exception("weight transfer failed in worker %d", self._worker)
            self._reply(call, error=f"worker {self._worker}: {error!r}", group=False)
        else:
            self._reply(call)

    def _join(self, body: Any) -> None:
        self._receiver.join(JoinWeightGroup.model_validate(body), worker=self._worker)

    def _receive(self, body: Any) -> None:
        self._receiver.receive(UpdateWeights.model_validate(body))

    def _reply(self, call: int, **problem: Any) -> None:
        if call in self._under_way:
            self._under_way.discard(call)
            self._write({"call": call, "held": self._receiver.held.model_dump(), **problem})

    def _write(self, line: dict[str, Any]) -> None:
        with self._sending:
            self._socket.sendall(json.dumps(line).encode() + b"\n")
