"""What a row's answers came to decides which epochs ask it."""

from common.config import Pool
from common.messages import Sample, Scored, ScoredGroup, SpansTarget, Unscored
from common.rows import Row
from services.learner.curriculum.pool import PoolState, RowPool
from tests.fixtures.learner.groups import injected_sample, policy_sample
from tests.fixtures.wire import scored_group

SETTINGS = Pool(drop_solved=0.8, drop_hopeless=0.1)


def rows(count: int = 4) -> list[Row]:
    target = SpansTarget(spans=((1.0, 2.0),))
    return [Row(str(n), "clip.mp4", None, "it rains", target) for n in range(1, count + 1)]


def pool(settings: Pool = SETTINGS, state: PoolState = PoolState()) -> RowPool:  # noqa: B008
    return RowPool(settings, rows(), seed=0, state=state)


def group(row: int, *ious: float | None, epoch: int = 0, mode: str = "answer") -> ScoredGroup:
    """Policy answers of these IoUs, None without verdict, and a perfect injected one."""
    samples: list[Sample] = [policy_sample((1,)) for _ in ious]
    verdicts = [
        Unscored(reason="x") if iou is None else Scored(reward=9.0, parts={"iou": iou})
        for iou in ious
    ]
    return scored_group("p").model_copy(
        update={
            "row_id": str(row),
            "epoch": epoch,
            "mode": mode,
            "samples": (*samples, injected_sample((1,))),
            "verdicts": (*verdicts, Scored(reward=9.0, parts={"iou": 1.0})),
        }
    )


def left_out(pool: RowPool, epoch: int) -> set[str]:
    return {row.row_id for row in rows() if not pool.asks(row.row_id, epoch=epoch)}


def test_all_right_and_all_wrong_sit_out_and_come_back() -> None:
    found = pool()
    for judged in (
        group(1, 0.8, 0.9),
        group(2, 0.0, 0.1),
        group(3, 0.0, 0.9),
        group(4, 0.79, 1.0),
    ):
        found.judge(judged)
    assert left_out(found, 0) == set(), "an epoch is not changed once it was begun"
    found.begin(1, mode="answer")
    assert left_out(found, 1) == {"1", "2"}
    assert found.state.left_out == {1: {"1": "solved", "2": "hopeless"}}
    found.begin(2, mode="answer")
    assert left_out(found, 2) == set(), "rest_epochs = 1"


def test_a_later_answer_counts_instead_of_an_earlier_one() -> None:
    found = pool(Pool(drop_solved=0.8, rest_epochs=2))
    found.judge(group(1, 0.9))
    found.begin(1, mode="answer")
    found.begin(2, mode="answer")
    assert left_out(found, 2) == {"1"}
    found.judge(group(1, 0.5, epoch=3))
    found.begin(4, mode="answer")
    assert left_out(found, 4) == set()


def test_the_other_mode_is_another_matter() -> None:
    found = pool()
    found.judge(group(1, 0.9))
    found.begin(1, mode="think")
    assert left_out(found, 1) == set()


def test_what_has_no_verdict_says_nothing() -> None:
    found = pool()
    found.judge(group(1, None, None))
    found.judge(group(2, None, 0.9))
    found.begin(1, mode="answer")
    assert left_out(found, 1) == {"2"}


def test_an_epoch_is_never_left_without_rows() -> None:
    found = pool()
    for row in range(1, 5):
        found.judge(group(row, 1.0))
    found.begin(1, mode="answer")
    assert left_out(found, 1) == set()


def test_its_state_is_all_it_knows() -> None:
    found = pool()
    found.judge(group(1, 0.9))
    found.begin(1, mode="answer")
    found.judge(group(2, 0.0, epoch=1))
    again = pool(state=PoolState.model_validate_json(found.state.model_dump_json()))
    for one in (found, again):
        one.begin(2, mode="answer")
    assert again.state == found.state
    assert left_out(again, 2) == left_out(found, 2) == {"2"}
