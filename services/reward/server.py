"""Process of the reward service: checks who may reach it, binds the port, runs uvicorn workers.

`tempsamp reward serve` calls `serve`. Port 0 takes a free one; the log line `listening` says which.
SIGTERM and SIGINT let running requests finish, within `DRAIN_S`.
"""

import contextlib
import functools
import logging
import os
import socket
import tempfile

import uvicorn
from fastapi import FastAPI

from common import logs
from common.config import Reward
from common.rest import serving
from common.rest.auth import refuse_open_port
from common.secrets import Tokens
from services.reward.app import NO_TOKENS, create_app

logger = logging.getLogger(__name__)

DRAIN_S = 30
"""For requests in work after SIGTERM; half-sent ones are cancelled then."""
END_S = 35.0
"""From SIGTERM to the end of the process, whatever a scorer does."""


def serve(settings: Reward | None = None, *, tokens: Tokens = NO_TOKENS, run_id: str = "-") -> None:
    """Run until a signal comes.

    Args:
        settings: `[reward]` of the run file; its defaults without one.
        tokens: bearer tokens that callers must show (`common.secrets.tokens()`).
        run_id: written on every log line; a service may outlive a run and serve many.

    Raises:
        ConfigError: it would listen off loopback without a token, or the port is taken.
        ServiceError: it ended by itself.
    """
    settings = settings or Reward()
    refuse_open_port(
        settings.host, tokens=tokens, allow_remote=settings.allow_remote, section="reward"
    )
    logs.configure("reward", run_id=run_id)
    with contextlib.ExitStack() as owned:
        listening = owned.enter_context(_listening(settings))
        metrics_dir = None
        if settings.workers > 1:
            folder = tempfile.TemporaryDirectory(prefix="tempsamp-reward-")
            metrics_dir = owned.enter_context(folder)
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics_dir
        config = _config(settings, tokens, run_id, metrics_dir=metrics_dir)
        serving.serve(config, listening, end_s=END_S)


def worker_app(settings: Reward, tokens: Tokens, run_id: str, metrics_dir: str | None) -> FastAPI:
    """What each worker process runs: its own app, its own logging."""
    logs.configure("reward", run_id=run_id)
    return create_app(settings, tokens=tokens, metrics_dir=metrics_dir)


def _config(
    settings: Reward, tokens: Tokens, run_id: str, *, metrics_dir: str | None
) -> uvicorn.Config:
    return serving.configured(
        functools.partial(worker_app, settings, tokens, run_id, metrics_dir),
        connections=settings.max_connections,
        drain_s=DRAIN_S,
        factory=True,
        workers=settings.workers,
    )


def _listening(settings: Reward) -> socket.socket:
    listening = serving.listen(settings.host, settings.port, knobs=("reward.host", "reward.port"))
    url = serving.url_of(listening, settings.host)
    logger.info("listening", extra={"url": url, "workers": settings.workers})
    return listening
