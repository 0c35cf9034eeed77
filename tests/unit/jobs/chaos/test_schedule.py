"""A storm is decided by its seed."""

from itertools import islice

from jobs.chaos.schedule import VICTIMS, Strike, strikes


def first(count: int, *, seed: int) -> list[Strike]:
    return list(islice(strikes(seed), count))


def test_a_seed_gives_the_same_strikes_again_and_another_seed_others() -> None:
    assert first(40, seed=3) == first(40, seed=3)
    assert first(60, seed=3)[:40] == first(40, seed=3)
    assert first(40, seed=3) != first(40, seed=4)


def test_everybody_is_killed_and_frozen_for_short_and_for_long() -> None:
    many = first(1000, seed=0)
    for victim in VICTIMS:
        struck = [strike for strike in many if strike.victim == victim]
        assert sum(strike.is_kill for strike in struck) > len(struck) / 2, "mostly"
        frozen_s = [strike.frozen_s for strike in struck if not strike.is_kill]
        assert min(frozen_s) < 5 < 20 < max(frozen_s)
    assert 0.1 < sum(strike.on_top for strike in many) / len(many) < 0.2
    assert not many[0].on_top, "there is nothing yet that it could meet"
