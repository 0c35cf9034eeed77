"""What people and models write: the span that a person reads, or none, in 480 answers.

`corpus.jsonl` holds a text a line with its kind and what a person reads in it (null: no span).
Rather unread than misread: a wrong span trains, an unread answer does not.
"""

import json
from pathlib import Path

from common.answers.reading import read_spans

CORPUS = [
    json.loads(line)
    for line in Path(__file__).with_name("corpus.jsonl").read_text("utf-8").splitlines()
]


def read(text: str) -> list[list[float]]:
    return [list(span) for span in read_spans(text).spans]


def test_nothing_is_misread() -> None:
    wrong = {
        row["text"]: found
        for row in CORPUS
        if (found := read(row["text"])) and found != row["spans"]
    }
    assert wrong == {}


def test_at_most_one_in_twenty_is_unread() -> None:
    meant = [row["text"] for row in CORPUS if row["spans"] is not None]
    unread = [text for text in meant if not read(text)]
    assert len(unread) <= len(meant) / 20, unread


def test_the_corpus_is_large_and_of_many_kinds() -> None:
    assert len({row["text"] for row in CORPUS}) == len(CORPUS) > 450
    assert len({row["kind"] for row in CORPUS}) >= 20
    assert sum(row["spans"] is None for row in CORPUS) > 80
