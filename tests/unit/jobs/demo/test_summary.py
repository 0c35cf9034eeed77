"""Reading what the learner writes, while it writes."""

from pathlib import Path

from jobs.demo.summary import METRICS_FILE, last_metrics


def test_the_last_line_is_one_that_was_written_whole(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    assert last_metrics(path) is None
    path.write_text('{"step": 1')
    assert last_metrics(path) is None
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert last_metrics(path) == {"step": 2}
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(20_000)))
    assert last_metrics(path) == {"step": 19_999}
