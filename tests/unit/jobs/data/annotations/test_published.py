"""Published files: every record is read, and what conversion leaves out is known by reason."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.answers.reading import read_highlights
from common.answers.spans import iou
from common.prompts import HIGHLIGHTS
from jobs.data.annotations.durations import read_durations
from jobs.data.annotations.reading import read
from jobs.data.annotations.records import Annotation, BadRecord
from jobs.data.annotations.sniff import sniff
from jobs.data.annotations.trainer_rows import RowRules
from jobs.data.convert import Conversion, Report, convert

DATA = Path(__file__).resolve().parents[6] / "shared" / "data"
CHARADES_DURATIONS = "charades_sta/charades_durations.derived.csv"
LATE = "span past the end"

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="published annotation files are not beside the repository"
)


def annotations(name: str) -> Iterator[Annotation]:
    for record in read(DATA / name):
        assert not isinstance(record, BadRecord)
        yield record


def report_of(name: str, folder: Path, **rules: Any) -> Report:
    source = DATA / name
    conversion = Conversion(schema=sniff(source), rules=RowRules(**rules))
    return convert(source, output=folder / "rows.jsonl", conversion=conversion)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("charades_sta/charades_sta_train.txt", 12_408),
        ("charades_sta/charades_sta_test.txt", 3_720),
        ("charades_sta/charades_test.timezero.json", 3_720),
        ("activitynet/train.2dtan.json.gz", 37_421),
        ("activitynet/val_1.2dtan.json", 17_505),
        ("activitynet/val_2.2dtan.json", 17_031),
        ("qvhighlights/highlight_train_release.jsonl.gz", 7_218),
        ("qvhighlights/highlight_val_release.jsonl", 1_550),
        ("qvhighlights/highlight_test_with_gt.jsonl", 1_542),
        ("qvhighlights/highlight_test_release.jsonl", 1_542),
        ("timelens/timelens100k_over180.derived.jsonl", 5_679),
        ("timelens/seed_timelens_grpo_train.head26.jsonl", 26),
        ("timer1/train_2k5.json", 2_500),
        ("timer1/tvgbench.json", 800),
        ("museg/stage_1.head.jsonl", 1_981),
    ],
)
def test_every_published_record_is_read(name: str, count: int) -> None:
    assert sum(1 for _ in annotations(name)) == count


@pytest.mark.parametrize(
    ("name", "rows", "clipped", "rejected"),
    [
        ("timelens/timelens100k_over180.derived.jsonl", 5_679, 0, {}),
        ("timelens/seed_timelens_grpo_train.head26.jsonl", 26, 0, {}),
        ("activitynet/train.2dtan.json.gz", 37_417, 261, {"span empty": 2, "span reversed": 2}),
        ("activitynet/val_1.2dtan.json", 17_505, 134, {}),
        ("activitynet/val_2.2dtan.json", 17_031, 111, {}),
        ("qvhighlights/highlight_train_release.jsonl.gz", 7_218, 0, {}),
        ("qvhighlights/highlight_val_release.jsonl", 1_550, 0, {}),
        ("qvhighlights/highlight_test_with_gt.jsonl", 1_542, 0, {}),
        ("qvhighlights/highlight_test_release.jsonl", 0, 0, {"no target": 1_542}),
        ("timer1/train_2k5.json", 2_471, 19, {LATE: 29}),
        ("timer1/tvgbench.json", 779, 17, {LATE: 10, "span empty": 11}),
        ("museg/stage_1.head.jsonl", 1_979, 72, {LATE: 1, "span empty": 1}),
    ],
)
def test_what_is_left_out_is_known_by_reason(
    tmp_path: Path, name: str, rows: int, clipped: int, rejected: dict[str, int]
) -> None:
    report = report_of(name, tmp_path)
    assert (report.rows_out, report.clipped, dict(report.rejected)) == (rows, clipped, rejected)


@pytest.mark.parametrize(("name", "windows"), [("train_2k5", 156), ("tvgbench", 252)])
def test_windows_of_longer_files_become_rows(tmp_path: Path, name: str, windows: int) -> None:
    """Of Time-R1's 665, 509 name files that are cut already; 11 of TVGBench's have an empty span,
    and 1 ends after its window."""
    asked = [record for record in annotations(f"timer1/{name}.json") if record.window is not None]
    assert len(asked) == windows
    report_of(f"timer1/{name}.json", tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    written = [row for row in rows if "end_s" in row]
    assert len(written) == windows - {"train_2k5": 0, "tvgbench": 12}[name]
    for row in written:
        assert row["duration"] == pytest.approx(row["end_s"] - row["start_s"], abs=1e-6)
        assert max(end for _, end in row["spans"]) <= row["duration"]


@pytest.mark.parametrize(
    ("split", "rows", "clipped", "rejected"),
    [
        ("train", 11_670, 1_068, {LATE: 734, "span reversed": 4}),
        ("test", 3_492, 334, {LATE: 228}),
    ],
)
def test_charades_spans_end_up_to_a_second_and_a_half_late(
    tmp_path: Path, split: str, rows: int, clipped: int, rejected: dict[str, int]
) -> None:
    """No end is more than 1.54 s late, so a tolerance of 2 s keeps all but the reversed ones."""
    name, durations = (
        f"charades_sta/charades_sta_{split}.txt",
        read_durations(DATA / CHARADES_DURATIONS),
    )
    report = report_of(name, tmp_path, durations=durations)
    assert (report.rows_out, report.clipped, dict(report.rejected)) == (rows, clipped, rejected)
    tolerant = report_of(name, tmp_path, durations=durations, end_tolerance_s=2.0)
    assert tolerant.rejected == Counter({k: v for k, v in rejected.items() if k != LATE})


@pytest.mark.parametrize(
    ("split", "rows"), [("train_release.jsonl.gz", 7_218), ("test_with_gt.jsonl", 1_542)]
)
def test_qvhighlights_converts_to_highlight_rows(tmp_path: Path, split: str, rows: int) -> None:
    report = report_of(f"qvhighlights/highlight_{split}", tmp_path, task="highlights")
    assert (report.rows_out, dict(report.rejected)) == (rows, {})


def test_published_rows_come_back_as_they_were(tmp_path: Path) -> None:
    """Only `spans` is new, and the order of two keys."""
    name = "timelens/seed_timelens_grpo_train.head26.jsonl"
    report_of(name, tmp_path)
    before = [json.loads(line) for line in (DATA / name).read_text().splitlines()]
    after = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in row.items() if k != "spans"} for row in after] == before


def test_time_r1_difficulty_is_the_iou_of_its_prediction() -> None:
    """Which is why it is turned round."""
    for record in annotations("timer1/train_2k5.json"):
        pred = record.extras["pred"]
        found = iou((pred[0], pred[1]), record.spans[0])
        assert record.difficulty == pytest.approx(1 - found, abs=1e-4)


@pytest.mark.parametrize(
    "split", ["train_release.jsonl.gz", "val_release.jsonl", "test_with_gt.jsonl"]
)
def test_highlight_prompt_contains_no_true_answer(split: str) -> None:
    examples = {
        read_highlights(prompt.split("like:")[1].split("Now I will")[0])
        for prompt in HIGHLIGHTS.values()
    }
    (example,) = examples
    times = {highlight.time_s for highlight in example}
    for record in annotations(f"qvhighlights/highlight_{split}"):
        assert times.isdisjoint(highlight.time_s for highlight in record.highlights)
