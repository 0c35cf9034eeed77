"""Which Redis may be used, and with what: passwords, users, TLS; refusals show no secret."""

import asyncio
import contextlib
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from common import config
from common.config import Shared
from common.errors import ConfigError, QueueError
from common.queue import connection
from common.queue.access import connection_options, refuse_open_redis
from common.queue.broker import Broker
from tests.fixtures.pages.documents import ROOT
from tests.fixtures.servers.redis_server import RedisServer
from tests.fixtures.servers.tls import certificate, in_front_of
from tests.fixtures.wire import prompt_request, replica_status, scored_group

ACL = "~tempsamp:{run_id}:* +@all -@admin -@dangerous +info"
"""What SECURITY.md gives a user of one run."""


def shared(url: str, *, password: str | None = None, **changed: object) -> Shared:
    settings = {"run_id": "a", "model": "m", "redis_url": url, "redis_password": password}
    return Shared.model_validate(settings | changed)


async def whole_round(broker: Broker) -> None:
    """A prompt, its group, and the registry."""
    await broker.wait_ready(timeout_s=5)
    await broker.reset_run()
    assert (await broker.fence.take("holder", ttl_s=5)).epoch > 0
    assert await broker.feed_prompt(prompt_request(1))
    claim = await broker.claim_prompt("r", lease_s=60, block_s=0.1)
    assert claim is not None
    assert await broker.renew(claim)
    await broker.push_group(claim, scored_group("p1"))
    ((entry, _),) = await broker.read_groups(2, block_s=0.1)
    await broker.acknowledge_groups([entry])
    await broker.announce(replica_status("r"), ttl_s=5)
    assert [status.replica for status in await broker.replicas()] == ["r"]
    assert (await broker.depths()).groups_unread == 0
    await broker.withdraw("r")
    await broker.fence.drop("holder")
    await broker.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@redis:6379/0",
        "redis://user:hunter2@redis:6379/0",
        "redis://user@redis:6379/0",
        "redis://:hunter/2@redis:6379/0",
        "redis://redis:6379/0?password=hunter2",
        "user:hunter2@redis:6379",
        "unix://user:hunter2@/run/redis.sock",
    ],
)
def test_a_url_with_a_password_is_refused_with_the_way_out(url: str) -> None:
    document = {
        "shared": {"run_id": "a", "model": "m", "redis_url": url},
        "learner": {"rows": "r", "run_dir": "d", "steps": 1},
    }
    words = r"^config: shared\.redis_url: found a user or a password in it.*"
    with pytest.raises(ConfigError, match=words + "TEMPSAMP_REDIS_PASSWORD") as refused:
        config.parse(document, environ={})
    assert "hunter" not in str(refused.value)


def test_a_reward_url_has_none_either() -> None:
    with pytest.raises(ValueError, match=r"shared\.reward_url: found .*TEMPSAMP_SCORE_TOKEN"):
        shared("redis://127.0.0.1", reward_url="http://user:hunter2@reward:8100")


@pytest.mark.parametrize("url", ["nonsense", "redis://reward:8100", "http://[::1", "http://h:0x"])
def test_the_reward_service_has_a_url(url: str) -> None:
    with pytest.raises(
        ValueError, match=r"shared\.reward_url: found .* such as http://127.0.0.1:8100"
    ):
        shared("redis://127.0.0.1", reward_url=url)


@pytest.mark.parametrize("url", ["redis://redis:6379/0", "rediss://10.1.2.3", "redis://[fd00::1]"])
def test_off_loopback_a_password_is_wanted(url: str) -> None:
    words = r"no password.*set TEMPSAMP_REDIS_PASSWORD .*shared\.redis_allow_open = true"
    with pytest.raises(ConfigError, match=words):
        Broker.of(shared(url))
    refuse_open_redis(shared(url, password="sesame"))
    refuse_open_redis(shared(url, redis_allow_open=True))


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1", "redis://localhost:1", "redis://[::1]:1", "unix:///run/a@b.sock"]
)
def test_on_this_machine_none_is_wanted(url: str) -> None:
    refuse_open_redis(shared(url))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://redis", r"wanted redis://HOST:PORT/0, rediss:// or unix://"),
        ("redis://127.0.0.1:port", r"found 'redis://127\.0\.0\.1:port', wanted redis://HOST"),
        ("redis://127.0.0.1:99999", "wanted redis://HOST:PORT/0.*: Port out of range"),
        ("redis:/127.0.0.1", "wanted redis://HOST:PORT/0"),
        ("127.0.0.1:6379", "wanted redis://HOST:PORT/0"),
        ("redis://127.0.0.1/first", "wanted redis://HOST:PORT/0"),
        ("redis://::1:6379/0", r"wanted brackets around an IPv6 address"),
        ("rediss://127.0.0.1?ssl_cert_reqs=none", "found ssl_cert_reqs in it"),
        ("redis://127.0.0.1?username=a", r"found username in it, wanted shared\.redis_user"),
    ],
)
def test_another_url_is_refused(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        refuse_open_redis(shared(url))


def test_a_ca_is_of_no_use_without_tls_or_when_it_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"shared\.redis_ca: .*wanted rediss://"):
        refuse_open_redis(shared("redis://127.0.0.1", redis_ca=tmp_path / "ca.pem"))
    with pytest.raises(ConfigError, match=r"shared\.redis_ca: found no file"):
        refuse_open_redis(shared("rediss://127.0.0.1", redis_ca=tmp_path / "ca.pem"))


@pytest.mark.parametrize("command", [("rollout", "serve"), ("learner",)], ids=" ".join)
def test_an_open_redis_is_one_line_before_anything_is_loaded(command: tuple[str, ...]) -> None:
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "tempsamp", *command),
            *("--config", "deploy/configs/demo.toml", "--set", "shared.redis_url=redis://redis/0"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert re.fullmatch(r"tempsamp: shared\.redis_url: found 'redis' and no .*\n", ended.stderr)


async def test_a_user_of_one_run_can_do_all_of_it_and_nothing_else(
    own_redis_server: RedisServer,
) -> None:
    admin = own_redis_server.broker("a")
    rules = ACL.format(run_id="a").split()
    await admin._connection.run("ACL", "SETUSER", "replica", "on", ">hunter2", *rules)
    await admin.close()
    url = own_redis_server.url
    await whole_round(Broker.of(shared(url, password="hunter2", redis_user="replica")))
    other = Broker.of(shared(url, password="hunter2", redis_user="replica", run_id="b"))
    with pytest.raises(QueueError, match=r"(?i)no permissions"):
        await other.depths()
    with pytest.raises(QueueError, match=r"(?i)no permissions"):
        await other._connection.run("CONFIG", "GET", "requirepass")
    await other.close()
    wrong = Broker.of(shared(url, password="wrong", redis_user="replica"))
    with pytest.raises(QueueError, match="refuses this password") as refused:
        await asyncio.wait_for(wrong.depths(), 5)
    assert "wrong" not in str(refused.value).lower().replace("wrongpass", "")
    await wrong.close()


async def test_a_round_over_tls(redis_server: RedisServer, run_id: str, tmp_path: Path) -> None:
    of = certificate(tmp_path)
    with in_front_of(redis_server.port, of) as port:
        settings = shared(
            f"rediss://127.0.0.1:{port}/0",
            password=redis_server.password,
            redis_ca=of.ca,
            run_id=run_id,
        )
        await whole_round(Broker.of(settings))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9"], ids=["unknown CA", "another name"])
async def test_a_certificate_that_is_not_trusted_is_no_reason_to_wait(
    redis_server: RedisServer, tmp_path: Path, host: str
) -> None:
    of = certificate(tmp_path / "one", host=host)
    trusted = certificate(tmp_path / "two").ca if host == "127.0.0.1" else of.ca
    with in_front_of(redis_server.port, of) as port:
        url = f"rediss://127.0.0.1:{port}/0"
        broker = Broker.of(shared(url, password=redis_server.password, redis_ca=trusted))
        with pytest.raises(QueueError, match=r"not trusted.*shared\.redis_ca"):
            await asyncio.wait_for(broker.wait_ready(), 10)
        await broker.close()


def test_without_a_ca_the_system_s_are_asked() -> None:
    options = connection_options(shared("rediss://127.0.0.1"))
    assert options["ssl_cert_reqs"] == "required"
    assert "ssl_ca_certs" not in options


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("redis://[::1]:6380/0", "Redis at [::1]:6380"),
        ("redis://127.0.0.1", "Redis at 127.0.0.1:6379"),
        ("unix:///run/redis.sock", "Redis at /run/redis.sock"),
    ],
)
async def test_messages_name_the_address_as_it_is_written(url: str, where: str) -> None:
    broker = Broker.of(shared(url))
    assert broker._connection.where == where
    await broker.close()


async def test_a_redis_that_takes_connections_and_says_nothing_is_spoken_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "SAY_EVERY_S", 0.05)
    frozen = socket.create_server(("127.0.0.1", 0))
    broker = Broker.of(shared(f"redis://127.0.0.1:{frozen.getsockname()[1]}"))
    waiting = asyncio.create_task(broker.wait_ready())
    for _ in range(2000):
        if caplog.records:
            break
        await asyncio.sleep(0.01)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    frozen.close()
    (record,) = caplog.records
    assert record.message == "waiting for redis"
    assert record.__dict__["error"] == "connected, and no answer yet"
