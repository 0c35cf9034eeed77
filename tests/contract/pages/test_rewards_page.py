"""docs/rewards.md names every setting of the objective, its values and its default."""

import re
from typing import get_args

import pytest
from pydantic import BaseModel

from common.config import Advantage, Loss
from tests.fixtures.pages.documents import ROOT

PAGE = (ROOT / "docs/rewards.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## From rewards to a loss")[1].split("\n## ")[0]
ROWS = [line.split(" | ") for line in SECTION.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("settings", [Advantage, Loss])
def test_every_setting_has_its_values_and_its_default(settings: type[BaseModel]) -> None:
    for name, field in settings.model_fields.items():
        (row,) = [row for row in ROWS if f"`{name}`" in row[0]]
        choices = [value for value in get_args(field.annotation) if isinstance(value, str)]
        if not choices:
            assert re.search(rf"\b{field.default:g}\b", row[1]), name
            continue
        shown = re.findall(r"`(\w+)`", row[1])
        assert shown[0] == field.default, name
        assert set(choices) <= set(shown), name


def test_no_row_is_about_a_setting_that_there_is_not() -> None:
    known = Advantage.model_fields.keys() | Loss.model_fields.keys()
    for row in ROWS:
        names = set(re.findall(r"`(\w+)`", row[0]))
        assert names <= known
