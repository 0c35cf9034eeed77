"""Child process that runs one third-party scorer: JSON lines in and out. Standard library only.

Started as a script by `services.reward.scorer_process`, one call at a time:

    {"op": "score", "item": {…}, "response": "…"}   ->  {"ok": {"reward": …}}  or  {"error": "…"}
    {"op": "answer", "item": {…}}                   ->  {"ok": "<answer> … </answer>" | null}

What the scorer prints goes to stderr. Should the parent die while a call hangs, a watchdog outside
the interpreter lock ends this process, so that nothing is left behind.
"""

import faulthandler
import importlib.metadata
import json
import math
import os
import sys
from typing import Any, BinaryIO

GROUP = "tempsamp.scorers"


def main() -> None:
    """`sandbox.py <sys.path as JSON> <entry point> <watchdog seconds>`; ends with stdin."""
    paths, name, watchdog_s = sys.argv[1:4]
    sys.path[:] = json.loads(paths)
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    scorer = _load(name)
    _send(replies, json.dumps({"ok": {"injects": callable(getattr(scorer, "answer", None))}}))
    for line in sys.stdin.buffer:
        faulthandler.dump_traceback_later(float(watchdog_s), exit=True)
        try:
            reply = json.dumps({"ok": _call(scorer, json.loads(line))}, allow_nan=False)
        except Exception as error:  # noqa: BLE001 - whatever a foreign scorer raises is its verdict
            reply = json.dumps({"error": f"{type(error).__name__}: {error}"})
        faulthandler.cancel_dump_traceback_later()
        _send(replies, reply)


def _load(name: str) -> Any:
    (entry_point,) = importlib.metadata.entry_points(group=GROUP, name=name)
    return entry_point.load()


def _call(scorer: Any, call: dict[str, Any]) -> Any:
    if call["op"] == "answer":
        return scorer.answer(call["item"]) if hasattr(scorer, "answer") else None
    result = scorer(call["response"], call["item"])
    if not isinstance(result, dict):
        result = {"reward": result}
    return {
        "reward": _finite(result["reward"]),
        "parts": {str(name): _finite(part) for name, part in result.get("parts", {}).items()},
        "parsed": result.get("parsed"),
    }


def _finite(number: Any) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"found {value}, wanted a finite number")
    return value


def _send(replies: BinaryIO, reply: str) -> None:
    replies.write(reply.encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    main()
