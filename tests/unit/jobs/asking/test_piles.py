"""Jobs that belong together go to one worker, and nobody waits for them."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from jobs.asking.piles import Piles


def piles_of(*jobs: str) -> Piles[str]:
    """`a1` and `a2` are of one pile."""
    return Piles(jobs, pile_of=lambda job: job[0])


async def test_a_worker_gets_the_rest_of_the_pile_he_began() -> None:
    piles = piles_of("a1", "b1", "c1", "a2", "b2", "a3")
    assert [(await piles.take("one"))[1], (await piles.take("two"))[1]] == ["a1", "b1"]
    assert [(await piles.take("one"))[1] for _ in range(3)] == ["a2", "a3", "c1"]
    assert (await piles.take("two"))[1] == "b2"


async def test_who_has_nothing_of_his_own_helps_another() -> None:
    piles = piles_of("a1", "a2", "a3")
    assert (await piles.take("one"))[1] == "a1"
    assert [(await piles.take("two"))[1] for _ in range(2)] == ["a2", "a3"]


async def test_what_is_put_back_goes_to_the_next_who_is_free_in_its_old_place() -> None:
    piles = piles_of("a1", "a2", "b1")
    first, second = await piles.take("one"), await piles.take("one")
    piles.put_back(second)
    piles.put_back(first)
    assert [(await piles.take("two"))[1] for _ in range(3)] == ["a1", "a2", "b1"]


async def test_a_worker_waits_for_what_may_be_put_back() -> None:
    piles = piles_of("a1")
    taken = await piles.take("one")
    waiting = asyncio.create_task(piles.take("two"))
    await asyncio.sleep(0)
    assert not waiting.done()
    piles.put_back(taken)
    assert await asyncio.wait_for(waiting, 1) == taken


async def test_drained_means_done_not_taken() -> None:
    piles = piles_of("a1", "a2")
    drained = asyncio.create_task(piles.drained())
    for _ in range(2):
        await piles.take("one")
        await asyncio.sleep(0)
        assert not drained.done()
    piles.done()
    piles.done()
    await asyncio.wait_for(drained, 1)
    await asyncio.wait_for(piles_of().drained(), 1)


@given(
    st.lists(st.integers(0, 5), max_size=30),
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=200, max_size=200),
)
def test_every_job_is_done_once_whoever_takes_and_drops_it(
    keys: list[int], turns: list[tuple[int, bool]]
) -> None:
    async def work() -> list[tuple[int, int]]:
        piles = Piles(list(enumerate(keys)), pile_of=lambda job: job[1])
        finished = []
        for worker, drops in turns:
            if len(finished) == len(keys):
                break
            taken = await asyncio.wait_for(piles.take(worker), 1)
            if drops:
                piles.put_back(taken)
            else:
                piles.done()
                finished.append(taken[1])
        if len(finished) == len(keys):
            await asyncio.wait_for(piles.drained(), 1)
        return finished

    finished = asyncio.run(work())
    assert len(set(finished)) == len(finished)
    if sum(not drops for _, drops in turns) >= len(keys):
        assert sorted(finished) == list(enumerate(keys))


def test_the_order_of_piles_is_that_of_their_first_jobs() -> None:
    async def order() -> list[str]:
        piles = piles_of("c1", "a1", "c2", "b1", "a2")
        return [(await piles.take("one"))[1] for _ in range(5)]

    assert asyncio.run(order()) == ["c1", "c2", "a1", "a2", "b1"]
