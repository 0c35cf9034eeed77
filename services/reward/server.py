"""Process of the reward service: checks who may reach it, binds the port, runs uvicorn workers.

`tempsamp reward serve` calls `serve`. Port 0 takes a free one; the log line `listening` says which.
SIGTERM and SIGINT let running requests finish.
"""

import functools
import logging
import os
import socket
import tempfile

import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr
from uvicorn.supervisors import Multiprocess

from common import logs
from common.config import Reward
from common.rest.address import base_url
from common.rest.auth import refuse_open_port
from services.reward.app import create_app

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
"""Longer than clients keep idle connections, so that none closes under a request."""
DRAIN_S = 30


def serve(
    settings: Reward | None = None, *, token: SecretStr | None = None, run_id: str = "-"
) -> None:
    """Run until a signal comes.

    Args:
        settings: `[reward]` of the run file; its defaults without one.
        token: bearer token that callers must show (`common.config.token()`); None asks for none.
        run_id: written on every log line; a service may outlive a run and serve many.

    Raises:
        ConfigError: it would listen off loopback without a token.
        SystemExit: the port is taken.
    """
    settings = settings or Reward()
    refuse_open_port(
        settings.host, token=token, allow_remote=settings.allow_remote, section="reward"
    )
    logs.configure("reward", run_id=run_id)
    if settings.workers == 1:
        config = _config(settings, token, run_id, metrics_dir=None)
        uvicorn.Server(config).run(sockets=[_bound(config)])
        return
    with tempfile.TemporaryDirectory(prefix="tempsamp-reward-") as metrics_dir:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics_dir
        config = _config(settings, token, run_id, metrics_dir=metrics_dir)
        Multiprocess(config, sockets=[_bound(config)]).run()


def worker_app(
    settings: Reward, token: SecretStr | None, run_id: str, metrics_dir: str | None
) -> FastAPI:
    """What each worker process runs: its own app, its own logging."""
    logs.configure("reward", run_id=run_id)
    return create_app(settings, token=token, metrics_dir=metrics_dir)


def _config(
    settings: Reward, token: SecretStr | None, run_id: str, *, metrics_dir: str | None
) -> uvicorn.Config:
    return uvicorn.Config(
        functools.partial(worker_app, settings, token, run_id, metrics_dir),
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )


def _bound(config: uvicorn.Config) -> socket.socket:
    """Listening from here on: who connects before the app is up waits instead of being refused."""
    bound = config.bind_socket()
    bound.listen(config.backlog)
    host, port = bound.getsockname()[:2]
    logger.info("listening", extra={"url": base_url(host, port), "workers": config.workers})
    return bound
