"""Process of a rollout replica: checks who may reach it, binds the port, runs until a signal comes.

`tempsamp rollout serve` calls `serve`. Port 0 takes a free one; the log line `listening` says
which.
"""

import ipaddress
import logging
import socket
import sys

import uvicorn

from common.config import Run
from common.logs import configure
from common.rest.address import base_url, family_of
from common.rest.auth import refuse_open_port
from services.rollout.app import create_app
from services.rollout.replica import Replica

logger = logging.getLogger(__name__)


def serve(run: Run) -> None:
    """Run a replica until SIGTERM; exits non-zero when the engine or too many prompts fail."""
    token = run.shared.token
    refuse_open_port(
        run.rollout.host, token=token, allow_remote=run.rollout.allow_remote, section="rollout"
    )
    where, family = (run.rollout.host, run.rollout.port), family_of(run.rollout.host)
    listening = socket.create_server(where, family=family, reuse_port=False)
    port = listening.getsockname()[1]
    url = base_url(run.rollout.advertise_host or _reachable(run.rollout.host), port)
    replica = Replica(run, url=url)
    configure("rollout", run_id=run.shared.run_id, replica=replica.name)
    logger.info("listening", extra={"url": url})
    config = uvicorn.Config(create_app(replica), log_config=None, access_log=False)
    uvicorn.Server(config).run(sockets=[listening])
    if replica.failure is not None:
        logger.critical("replica failed", extra={"error": str(replica.failure)})
        sys.exit(1)


def _reachable(host: str) -> str:
    """An address that others can use: every interface is none, this machine's name is one."""
    try:
        everywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host
    return socket.gethostname() if everywhere else host
