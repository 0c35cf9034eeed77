"""`tempsamp status --watch`: on a terminal in place, elsewhere one look below the other."""

import io
import time

import pytest

from common import config
from jobs.fleet import status
from jobs.fleet.services import Fleet, Replica
from jobs.local import terminal
from tests.fixtures.pages.shown import Screen
from tests.fixtures.wire import replica_status

RUN = config.parse(
    {"shared": {"run_id": "r", "model": "m"}, "learner": {"rows": "r", "run_dir": "d", "steps": 1}},
    source="a test",
)
FLEETS = (
    Fleet(run_id="[r]", replicas=()),
    Fleet(run_id="r", replicas=(Replica(status=replica_status("a"), unreachable="refused"),)),
)


@pytest.mark.parametrize("file", [io.StringIO(), Screen()])
def test_each_look_is_shown(file: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter(FLEETS)

    async def look(*_run: object, **_options: object) -> Fleet:
        try:
            return next(looks)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(status, "look", look)
    monkeypatch.setattr(status, "console", lambda: terminal.console(file=file))
    monkeypatch.setattr(time, "sleep", lambda _s: None)
    with pytest.raises(KeyboardInterrupt):
        status._watch(RUN, learner_url=None, every_s=1)
    text = file.getvalue()
    assert text.index("found no replica and no learner of run '[r]'") < text.index("no answer")
    assert ("\x1b[2K" in text) == file.isatty(), "drawn over"
