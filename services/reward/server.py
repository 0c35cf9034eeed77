"""Process of the reward service: checks who may reach it, binds the port, runs uvicorn workers.

`tempsamp reward serve` calls `serve`. Port 0 takes a free one; the line `Uvicorn running on …` says
which. SIGTERM and SIGINT let running requests finish.
"""

import functools
import os
import tempfile

import uvicorn
from pydantic import SecretStr
from uvicorn.supervisors import Multiprocess

from common.auth import refuse_open_port
from common.config import Reward
from services.reward.app import create_app

KEEP_ALIVE_S = 75
"""Longer than clients keep idle connections, so that none closes under a request."""
DRAIN_S = 30


def serve(settings: Reward | None = None, *, token: SecretStr | None = None) -> None:
    """Run until a signal comes.

    Args:
        settings: `[reward]` of the run file; its defaults without one.
        token: bearer token that callers must show (`common.config.token()`); None asks for none.

    Raises:
        ConfigError: it would listen off loopback without a token.
        SystemExit: the port is taken.
    """
    settings = settings or Reward()
    refuse_open_port(
        settings.host, token=token, allow_remote=settings.allow_remote, section="reward"
    )
    if settings.workers == 1:
        uvicorn.Server(_config(settings, token, metrics_dir=None)).run()
        return
    with tempfile.TemporaryDirectory(prefix="tempsamp-reward-") as metrics_dir:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = metrics_dir
        config = _config(settings, token, metrics_dir=metrics_dir)
        Multiprocess(config, sockets=[config.bind_socket()]).run()


def _config(
    settings: Reward, token: SecretStr | None, *, metrics_dir: str | None
) -> uvicorn.Config:
    """The app as a factory: each worker makes its own; the factory travels to them by pickle."""
    return uvicorn.Config(
        functools.partial(create_app, settings, token=token, metrics_dir=metrics_dir),
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=DRAIN_S,
    )
