"""Schemathesis over /openapi.json: requests made from the schema, good and bad, at the real app.

The first run sends whatever the schema allows and forbids and asks for every check but acceptance:
that a span ends after it starts cannot be said in JSON Schema. The second run puts targets right
and asks for acceptance too. Both are deterministic.
"""

from typing import Any

import schemathesis
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from services.reward.app import create_app
from tests.fixtures.pages.openapi_runs import any_and_good, bounded

app = create_app()
any_schema, good_schema = any_and_good(app)


def _put_right(item: dict[str, Any]) -> None:
    """A target that means something: spans in order inside the video, text that holds one."""
    target = item.get("target")
    if not isinstance(target, dict):
        return
    item["duration_s"] = None
    if "highlights" in target:
        item["task"] = "highlight_detection"
        for highlight in target["highlights"]:
            highlight["time_s"] = min(highlight["time_s"], 1e6)
            highlight["score"] = min(max(highlight["score"], -5), 5)
        return
    item["task"] = "temporal_grounding"
    if "text" in target:
        target["text"] = "7 to 11"
    else:
        target["spans"] = [[index, index + 1.5] for index in range(len(target["spans"]))]


@any_schema.parametrize()
@bounded
def test_no_request_breaks_the_contract(case: schemathesis.Case) -> None:
    case.call_and_validate(excluded_checks=[positive_data_acceptance])


@good_schema.parametrize()
@bounded
def test_meaningful_requests_are_accepted(case: schemathesis.Case) -> None:
    assert case.meta is None or case.meta.generation.mode is GenerationMode.POSITIVE
    if isinstance(case.body, dict):
        for item in case.body.get("items", [case.body]):
            _put_right(item)
    case.call_and_validate()
