"""What /metrics counts."""

from services.reward.metrics import Metrics


def test_verdicts_are_counted_by_task_and_outcome() -> None:
    metrics = Metrics()
    metrics.count_verdicts(
        "grounding",
        [
            {"kind": "scored", "parsed": {"spans": [[1.0, 2.0]]}},
            {"kind": "scored", "parsed": None},
            {"kind": "unscored", "reason": "timeout: the scorer took over 5 s"},
            {"kind": "unscored", "reason": "error: ValueError: x"},
        ],
    )
    text = metrics.exposition().decode()
    name = "tempsamp_reward_responses_total"
    assert f'{name}{{outcome="scored",task="grounding"}} 2.0' in text
    assert f'{name}{{outcome="timeout",task="grounding"}} 1.0' in text
    assert f'{name}{{outcome="error",task="grounding"}} 1.0' in text
    assert 'tempsamp_reward_unread_total{task="grounding"} 1.0' in text


def test_a_task_without_unread_answers_shows_a_zero() -> None:
    metrics = Metrics()
    metrics.count_verdicts("grounding", [{"kind": "scored", "parsed": {"spans": []}}])
    assert 'tempsamp_reward_unread_total{task="grounding"} 0.0' in metrics.exposition().decode()


def test_injections_and_requests_are_counted() -> None:
    metrics = Metrics()
    metrics.count_injection("grounding", injected=True)
    metrics.count_injection("grounding", injected=False)
    metrics.observe_request("/v1/score", 200, 0.004)
    text = metrics.exposition().decode()
    assert 'tempsamp_reward_injections_total{injected="false",task="grounding"} 1.0' in text
    assert 'request_seconds_bucket{le="0.005",route="/v1/score",status="200"} 1.0' in text


def test_two_apps_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.count_verdicts("grounding", [{"kind": "scored"}])
    assert b'task="grounding"' not in second.exposition()
