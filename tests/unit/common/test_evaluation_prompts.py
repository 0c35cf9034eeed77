"""Prompts of the protocols: their words, and that none holds a benchmark's answer (SPEC A5)."""

from pathlib import Path

import pytest

from common.answers.reading import read_spans
from common.prompts import EVALUATION_PROMPTS, GROUNDING, HIGHLIGHTS, chat_messages
from jobs.data.annotations.reading import read
from jobs.data.annotations.records import Annotation

DATA = Path(__file__).parents[3].parent / "shared" / "data"
BENCHMARKS = (
    "charades_sta/charades_sta_test.txt",
    "activitynet/val_1.2dtan.json",
    "activitynet/val_2.2dtan.json",
    "qvhighlights/highlight_val_release.jsonl",
    "qvhighlights/highlight_test_with_gt.jsonl",
    "timer1/tvgbench.json",
)
TEMPLATES = {
    f"{name}/{mode}": template
    for name, modes in {**EVALUATION_PROMPTS, "highlights": HIGHLIGHTS}.items()
    for mode, template in modes.items()
}
KNOWN = {("published/answer", "BIQGN.mp4")}
"""The published rows' own example; said where it is defined, and not the default."""


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_asks_its_query_about_one_video(name: str) -> None:
    problem = TEMPLATES[name].format(query="a {dog} runs")
    assert "a {dog} runs" in problem
    assert chat_messages(problem)[0].content[0].type == "video"


def test_ours_differs_from_the_published_prompt_in_the_example_alone() -> None:
    ours, published = EVALUATION_PROMPTS["ours"], EVALUATION_PROMPTS["published"]
    assert published is GROUNDING
    assert ours["answer"] == published["answer"].replace("12.5 to 17.8", "12.54 to 17.83")
    assert ours["think"] == published["think"]


def test_the_official_prompt_of_timelens_is_theirs() -> None:
    assert EVALUATION_PROMPTS["timelens"]["answer"].format(query="a dog") == (
        "<video>Please find the visual event described by the sentence 'a dog', determining its "
        "starting and ending times. The format should be: 'The event happens in <start time> - "
        "<end time> seconds'."
    )


@pytest.mark.skipif(not DATA.is_dir(), reason="no annotation files beside the repository")
def test_no_prompt_holds_a_true_span_of_a_benchmark() -> None:
    examples = {name: set(read_spans(template).spans) for name, template in TEMPLATES.items()}
    assert examples["ours/answer"] == {(12.54, 17.83)}
    truths: dict[tuple[float, float], str] = {}
    for file in BENCHMARKS:
        for record in read(DATA / file):
            assert isinstance(record, Annotation)
            truths.update(dict.fromkeys(record.spans, record.video))
    assert len(truths) > 20_000
    leaks = {
        (name, truths[span]) for name, spans in examples.items() for span in spans & truths.keys()
    }
    assert leaks == KNOWN
