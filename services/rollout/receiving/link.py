"""Between a replica and its vLLM workers: weight transfers, past the engine's loop.

vLLM carries out calls to its workers between two steps of generation, so a transfer inside one
would stand in generation's way for its whole length. Here each worker has a thread that listens on
a Unix socket of the replica: it joins, receives into staging and verifies while the engine goes on.

    links = WorkerLinks(count); await links.listen(); ... await links.call("receive", update)

`worker` is the other end. One JSON object a line; the socket lies in a folder that only this
user can enter.
"""

import asyncio
import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from common.errors import GroupError, WeightError
from common.messages import HeldWeights

Action = Literal["join", "receive", "leave"]
CONNECT_TIMEOUT_S = 60.0
MAX_LINE_BYTES = 64 * 2**20


class WorkerLinks:
    """The replica's ends: `listen` before workers connect, `close` at the end."""

    def __init__(self, count: int) -> None:
        """`count`: workers that will connect."""
        self._count = count
        self._folder = Path(tempfile.mkdtemp(prefix="tempsamp-"))
        self.path = self._folder / "weights.sock"
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._answers: dict[tuple[int, int], asyncio.Future[dict[str, Any]]] = {}
        self._calls = 0
        self._connected = asyncio.Condition()
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Open the socket; workers may connect."""
        self._server = await asyncio.start_unix_server(
            self._listen, self.path, limit=MAX_LINE_BYTES
        )

    def close(self) -> None:
        """Close the socket and remove its folder."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers.values():
            writer.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def call(self, action: Action, body: BaseModel | None = None) -> HeldWeights:
        """Have all workers do something; returns when all have, with what all of them hold.

        Raises:
            GroupError, WeightError: a worker could not; what is one worker's own fault comes first.
        """
        async with self._connected:
            ready = self._connected.wait_for(lambda: len(self._writers) == self._count)
            await asyncio.wait_for(ready, CONNECT_TIMEOUT_S)
        self._calls += 1
        # Not read in `_ask`: that begins later, and by then another call may have counted.
        call = self._calls
        waiting = [self._ask(worker, call, action, body) for worker in sorted(self._writers)]
        answers = await asyncio.gather(*waiting)
        _raise_worst(answers)
        held = [HeldWeights.model_validate(answer["held"]) for answer in answers]
        return held[0] if all(item == held[0] for item in held) else HeldWeights()

    async def _ask(
        self, worker: int, call: int, action: Action, body: BaseModel | None
    ) -> dict[str, Any]:
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[worker, call] = answer
        line = {"call": call, "action": action, "body": body.model_dump() if body else None}
        writer = self._writers[worker]
        writer.write(json.dumps(line).encode() + b"\n")
        await writer.drain()
        try:
            return await answer
        finally:
            del self._answers[worker, call]

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        worker = int(json.loads(await reader.readline())["worker"])
        async with self._connected:
            self._writers[worker] = writer
            self._connected.notify_all()
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                answer = json.loads(line)
                waiting = self._answers.get((worker, answer["call"]))
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
        for (owner, _), waiting in list(self._answers.items()):
            if owner == worker and not waiting.done():
                waiting.set_result({"error": f"worker {worker} is gone", "group": False})


def _raise_worst(answers: list[dict[str, Any]]) -> None:
    failed = [answer for answer in answers if "error" in answer]
    for answer in sorted(failed, key=lambda answer: answer["group"]):
        raise (GroupError if answer["group"] else WeightError)(answer["error"])
