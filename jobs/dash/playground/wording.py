"""The words that a run asks with: the instruction of its rows, around any query.

    <learner.rows> -> wording_of() -> what stands before and after the query

A policy answers what it was trained to be asked. Neighbour: `.models` asks a run's checkpoints and
replicas so; thoughts are asked for in our own words, as the learner does (`common.rows`).
"""

from pathlib import Path

from common.prompts import VIDEO_TAG
from common.rows import TrainerRow, UnusableRowError, query_of

Wording = tuple[str, str]
LONGEST_LINE = 2**20


def wording_of(rows: Path) -> Wording | None:
    """Of the first row; None where it has no instruction of its own, or the query is not in it
    once."""
    try:
        with rows.open("rb") as file:
            row = TrainerRow.parse(file.readline(LONGEST_LINE))
    except (OSError, UnusableRowError):
        return None
    problem = row.problem or ""
    query = row.query or query_of(problem)
    if row.highlights or not query or problem.count(query) != 1 or problem.count(VIDEO_TAG) != 1:
        return None
    before, after = problem.split(query)
    return before, after
