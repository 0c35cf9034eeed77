"""docs/reframe.md, run as it stands there, with a replica that knows the subjects."""

import json
import re
from pathlib import Path

from jobs.reframe.crop import Size, centred, crop_size
from jobs.reframe.tracking import OUTLIER_SHARE, OUTLIER_SPEED, WINDOW
from tests.fixtures.pages.documents import ROOT, example, run_script
from tests.fixtures.replicas.reframing import oracle, write_task
from tests.fixtures.replicas.stand_in_replica import serving

PAGE = (ROOT / "docs/reframe.md").read_text(encoding="utf-8")
TIMEOUT_S = 120


def test_from_nothing_to_a_checked_submission(tmp_path: Path) -> None:
    write_task(tmp_path, count=2)
    shown = run_script(example("reframe-center").script, cwd=tmp_path, timeout_s=TIMEOUT_S)
    assert "center.jsonl: 2 videos, 128 frames" in shown
    assert "center.jsonl: sound: 2 videos" in shown
    with serving(oracle) as replica:
        script = example("reframe-qwen").script.replace("http://127.0.0.1:8200", replica.url)
        shown = run_script(script, cwd=tmp_path, timeout_s=TIMEOUT_S)
    assert "sub.jsonl: 2 videos: 2 followed" in shown
    assert "sub.jsonl: sound: 2 videos" in shown
    assert "frame F1  1.000" in shown
    assert (tmp_path / "clip.mp4").is_file()
    assert (tmp_path / "clip.png").is_file()


def test_the_page_s_index_and_line_are_what_commands_read(tmp_path: Path) -> None:
    index, line = (json.loads(text) for text in re.findall(r"```json\n(.*?)\n```", PAGE, re.DOTALL))
    write_task(tmp_path, count=2)
    assert index == json.loads((tmp_path / "test_index.json").read_text())
    assert set(line) == {"video_id", "targetRatioWH", "predictions"}
    assert set(line["predictions"][0]) == {"frame", "bboxes"}
    frame, ratio = Size(64, 64), Size(*line["targetRatioWH"])
    assert line["predictions"][0]["bboxes"][2] == crop_size(frame, ratio=ratio).width
    assert centred(frame, ratio=ratio).w == 36


def test_every_fault_in_the_code_is_on_the_page() -> None:
    code = "".join(
        (ROOT / f"jobs/reframe/{name}.py").read_text() for name in ("stages", "tracking")
    )
    kinds = set(re.findall(r'fault\(\s*"([^"]+)"', code))
    kinds |= set(re.findall(r'faults\["([^"]+)"\]', code))
    kinds |= {f"{note} in a reply" for note in ("several objects", "no JSON", "answer tags")}
    kinds |= {"slip of a point"}
    assert len(kinds) == 16
    assert {kind for kind in kinds if f"`{kind}`" not in PAGE} == set()


def test_bounds_on_the_page_are_the_code_s() -> None:
    assert (OUTLIER_SHARE, OUTLIER_SPEED, WINDOW) == (0.2, 0.5, 5)
    assert "a fifth of the frame" in PAGE
    assert "median over five keyframes" in PAGE
