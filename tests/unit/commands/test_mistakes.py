"""Plain mistakes: paths, addresses, settings of every command end in one line, exit code 2."""

import gzip
import json
import logging
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tempsamp
from jobs.dash import folder
from jobs.fleet import services

ROOT = Path(__file__).resolve().parents[3]
DEAD_REDIS = "--set shared.redis_url=redis://127.0.0.1:1/0"
NO_SUCH_REDIS = (
    "--set shared.redis_url=redis://nosuchhost.invalid/0 --set shared.redis_allow_open=1"
)
WORDS = [
    # (words, what the line has to say): FILE is a file, DIR a folder, RUN a run file of the demo,
    # LIST a line that is no object, TAKEN a port.
    ("learner --config nope.toml", "nope.toml: No such file"),
    ("learner --config DIR", "DIR: Is a directory"),
    ("learner --config FILE", "FILE: not TOML"),
    ("learner --config REWARD", "2 problems"),
    ("learner --config TYPO", "learner.optimizer.lrr: unknown key; did you mean 'lr'?"),
    ("rollout serve --config TYPO", "learner.optimizer.lrr: unknown key; did you mean 'lr'?"),
    ("rollout serve --config RUN --set rollout.port=99999", "rollout.port: found 99999"),
    ("rollout serve --config RUN --set rollout.prot=1", "rollout.prot: unknown key; did you mean"),
    ("rollout serve --config RUN --set nonsense", "wanted section.key=value"),
    ("rollout serve --config RUN --set shared.model=/nowhere", "shared.model: found no folder"),
    ("rollout serve --config RUN --set shared.model=FILE", "shared.model: found the file"),
    ("rollout serve --config RUN --set shared.model=DIR", "shared.model: found"),
    ("rollout serve --config RUN --set shared.model=a/b/c", "neither a folder in"),
    ("rollout serve --config RUN --set shared.reward_url=reward:8100", "shared.reward_url: found"),
    ("learner --config RUN --set shared.redis_url=http://redis", "wanted redis://HOST:PORT/0"),
    ("learner --config RUN --set shared.redis_url=redis://::1:6379", "brackets around an IPv6"),
    ("learner --config RUN --set shared.redis_url=redis://redis:6379", "and no password"),
    ("learner --config RUN --set learner.metrics_port=-1", "learner.metrics_port: found -1"),
    ("learner --config RUN --nodes 2", "--meet: found nothing"),
    ("learner --config RUN --nodes 2 --meet ::1:29500", "--meet: found ::1:29500"),
    ("reward serve --config nope.toml", "nope.toml: No such file"),
    ("reward serve --port 70000", "reward.port: found 70000"),
    ("reward serve --host 192.0.2.1", "reward.host: found '192.0.2.1' and no token"),
    (
        "reward serve --host nosuchhost.invalid --set reward.allow_remote=true",
        "reward.host, reward.port: found nosuchhost.invalid port",
    ),
    ("reward serve --set learner.steps=1", "found settings for ['learner']"),
    (f"status --config RUN {DEAD_REDIS}", "start it, or correct shared.redis_url"),
    (f"status --config RUN {NO_SUCH_REDIS}", "nosuchhost.invalid:6379: no answer"),
    ("status --config RUN --learner node-1:8300", "--learner: found 'node-1:8300'"),
    (f"drain a --config RUN {DEAD_REDIS}", "start it, or correct shared.redis_url"),
    ("drain a", "--config: found none"),
    ("drain http://127.0.0.1:1", "REPLICA: found http://127.0.0.1:1: ConnectError"),
    ("drain http://[::1]:1", "REPLICA: found http://[::1]:1: ConnectError"),
    ("drain http://nosuchhost.invalid", "Name or service not known"),
    ("drain http://[::1", "REPLICA: found 'http://[::1'"),
    ("audit nowhere", "nowhere/ledger.jsonl: No such file"),
    ("audit FILE", "Not a directory"),
    ("plan nope.toml --learner-gpus 1 --rollout-gpus 1", "nope.toml: No such file"),
    ("plan RUN --learner-gpus 1 --rollout-gpus 1 --set shared.model=/nowhere", "shared.model"),
    ("plan RUN --learner-gpus 1 --rollout-gpus 1 --gpu-memory-gb inf", "'--gpu-memory-gb': "),
    ("plan RUN --learner-gpus 1 --rollout-gpus 1 --gpu-tflops nan", "'--gpu-tflops': "),
    ("learner --config RUN --shutdown-timeout nan", "'--shutdown-timeout': "),
    ("status --config RUN --watch nan", "'--watch': found nan: input should be less than"),
    ("status --config RUN --watch 1e300", "'--watch': found 1e300: input should be less than"),
    ("ground FILE q --n few", "'--n': found few: input should be a valid integer"),
    ("eval --bench FILE --out o --task foo", "'--task': 'foo' is not one of"),
    ("ground FILE q --end nan", "'--end': found nan, wanted a finite number"),
    ("demo --config nope.toml", "nope.toml: No such file"),
    ("demo --method grpp", "METHOD: found 'grpp', wanted one of grpo"),
    ("demo --set learner.stepz=3", "learner.stepz: unknown key; did you mean 'steps'?"),
    ("demo --config RUN --set learner.run_dir=FILE/x", "learner.run_dir: found"),
    ("compare nowhere nowhere", "nowhere: found nothing there"),
    ("compare FILE FILE", "found no JSON"),
    ("eval score nowhere --bench rows", "nowhere: found no file"),
    ("eval score DIR --bench rows", "found a folder, wanted a file"),
    ("eval score FILE --bench row", "nearest: rows"),
    ("eval --bench rows --video-root DIR --out o", "found neither --model nor --endpoint"),
    ("eval --bench x.jsonl --video-root DIR --out o --model /nowhere", "--model: found no folder"),
    ("eval --bench FILE --video-root DIR --out o --endpoint node-1", "--endpoint: found 'node-1'"),
    ("ground nope.mp4 q --endpoint http://127.0.0.1:1", "nope.mp4: No such file"),
    ("ground FILE q --model /nowhere", "--model: found no folder /nowhere"),
    ("ground FILE q --config TYPO", "learner.optimizer.lrr: unknown key"),
    ("ground FILE ' ' --endpoint http://127.0.0.1:1", "query: found no words"),
    ("ground FILE q --endpoint http://127.0.0.1:1 --out DIR", "--out: found DIR, wanted a .png"),
    ("reframe center --index nope --video-dir DIR --out o", "--index: nope: [Errno 2]"),
    ("reframe qwen --index FILE --video-dir DIR --out o --endpoint http://h", "wanted a JSON list"),
    ("reframe check nope --index nope", "No such file"),
    ("reframe show nope --video-dir DIR --id x --out o.mp4", "No such file"),
    ("reframe score DIR --truth DIR", "Is a directory"),
    ("reframe score LIST --truth LIST", "wanted a line of a submission (it is no object)"),
    ("dash --redis foo", "--redis: found 'foo', wanted redis://HOST:PORT/0"),
    ("dash DIR --redis foo", "--redis: found 'foo', wanted redis://HOST:PORT/0"),
    ("dash --redis redis://127.0.0.1:1/0", "start it, or correct --redis"),
    ("dash --redis redis://redis:6379", "--redis: found 'redis' and no password"),
    ("dash DIR --port TAKEN", "--host, --port: found 127.0.0.1 port"),
    ("data convert --input nope --output o.jsonl", "found no file nope"),
    ("data convert --input FILE --output o.jsonl", "wanted one of the schemas"),
    ("data convert --input EMPTY --output o.jsonl", "EMPTY: found nothing, wanted one of the"),
    ("data convert --input VIDEO --output o.jsonl", "VIDEO: found a file that is not UTF-8 text"),
    ("data convert --input CUT.gz --output o.jsonl", "broken file: gzip: Compressed file ended"),
    (
        "data convert --input FILE --output o.jsonl --gaussian-std nan",
        "'--gaussian-std': found nan",
    ),
    (
        "data convert --schema rows --input FILE --output o.jsonl --min-gt-len 9 --max-gt-len 1",
        "--min-gt-len: found 9 while --max-gt-len is 1, wanted no more",
    ),
    (
        "data convert --schema rows --input FILE --output o.jsonl --duration-source nope.csv",
        "--duration-source: found no file nope.csv, wanted CSV",
    ),
    (
        "data convert --schema rows --input FILE --output o.jsonl --duration-source VIDEO",
        "--duration-source: VIDEO: found a file that is no text",
    ),
    ("data inspect nope", "file 'nope' does not exist"),
    ("data inspect EMPTY", "tempsamp: EMPTY: found nothing, wanted one of the schemas"),
    ("data inspect EMPTY --schema rows", "tempsamp: EMPTY: found no usable record"),
    ("data preprocess --input EMPTY --video-root DIR --cache c", "--input: EMPTY: found nothing"),
    (
        "data import-pt --input EMPTY --video-root DIR --pt-dir DIR --cache c",
        "EMPTY: found nothing",
    ),
    ("data preprocess --input nope --cache c", "file 'nope' does not exist"),
    ("data preprocess --input FILE --cache c", "found no folder of videos"),
    ("data import-pt --input FILE --pt-dir FILE --cache c", "is a file"),
]


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    """Services send the log of their process elsewhere."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (services, folder):
        monkeypatch.setattr(module, "REDIS_OUTAGE_S", 0.1)
    monkeypatch.chdir(tmp_path)
    Path("DIR").mkdir()
    Path("FILE").write_text("x\n")
    Path("EMPTY").write_text("")
    Path("VIDEO").write_bytes(b"\0\0\0\x20ftypisom\n\xff\xfe\n")
    Path("CUT.gz").write_bytes(gzip.compress(b"AAAAA 1.0 5.0##a\n")[:15])
    Path("LIST").write_text("[]\n")
    demo = (ROOT / "deploy/configs/demo.toml").read_text()
    model = json.dumps(str(ROOT / "deploy/tiny-qwen3vl"))
    demo = demo.replace('"deploy/tiny-qwen3vl"', model)
    Path("RUN").write_text(demo)
    Path("TYPO").write_text(demo.replace("\nlr = ", "\nlrr = "))
    Path("REWARD").write_text('[shared]\nrun_id = "a"\n[reward]\nport = 0\n')


@pytest.mark.parametrize(("words", "said"), WORDS, ids=[words for words, _ in WORDS])
def test_one_line_and_exit_code_2(
    words: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = words.replace("TAKEN", str(taken.getsockname()[1]))
        monkeypatch.setattr(sys, "argv", ["tempsamp", *shlex.split(words)])
        with pytest.raises(SystemExit) as end:
            tempsamp.main()
    shown = capsys.readouterr().err
    assert end.value.code == 2, shown
    assert said in shown
    assert "Traceback" not in shown
    # Several problems of one run file are a line each; a library's log lines would be more.
    assert shown.count("\n") == (3 if "problems" in shown else 1), shown
    assert caplog.records == []
