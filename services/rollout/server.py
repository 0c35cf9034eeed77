"""Process of a rollout replica: checks who may reach it, binds the port, runs until a signal comes.

`tempsamp rollout serve` calls `serve`. Port 0 takes a free one; the log line `listening` says
which.
"""

import ipaddress
import logging
import socket
import sys

from common.config import Run
from common.errors import last_words
from common.logs import configure, say_failed
from common.rest import serving
from common.rest.auth import refuse_open_port
from services.rollout.app import create_app
from services.rollout.replica import DRAIN_S, Replica

logger = logging.getLogger(__name__)

END_S = 35.0
"""From SIGTERM to the end of the process, whatever hangs: requests and prompts in work get
`DRAIN_S` of it, side by side, and the engine ends in the rest."""


def serve(run: Run) -> None:
    """Run a replica until SIGTERM; exits non-zero when the engine or too many prompts fail.

    With 2 when a setting is why, such as a wrong password, else with 1.
    """
    refuse_open_port(
        run.rollout.host,
        tokens=run.shared.tokens,
        allow_remote=run.rollout.allow_remote,
        section="rollout",
    )
    listening = serving.listen(
        run.rollout.host, run.rollout.port, knobs=("rollout.host", "rollout.port")
    )
    url = serving.url_of(listening, run.rollout.advertise_host or _reachable(run.rollout.host))
    replica = Replica(run, url=url)
    configure("rollout", run_id=run.shared.run_id, replica=replica.name)
    logger.info("listening", extra={"url": url})
    config = serving.configured(
        create_app(replica), connections=run.rollout.max_connections, drain_s=round(DRAIN_S)
    )
    serving.serve(config, listening, end_s=END_S, on_stop=replica.stop)
    if replica.failure is not None:
        say_failed("replica failed", replica.failure)
        sys.exit(last_words(replica.failure)[1])


def _reachable(host: str) -> str:
    """An address that others can use: every interface is none, this machine's name is one."""
    try:
        everywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host
    return socket.gethostname() if everywhere else host
