"""A browser for a test file, and pages of it whose consoles are read."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.fixtures.pages.browser import chromium

if TYPE_CHECKING:  # importing it skips the tests of who has no playwright
    from playwright.sync_api import Browser

    from tests.fixtures.pages.browsing import Open, Picture


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with chromium() as found:
        yield found


@pytest.fixture
def opened(browser: "Browser") -> "Iterator[Open]":
    from tests.fixtures.pages.browsing import pages

    with pages(browser) as open_page:
        yield open_page


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> "Picture":
    from tests.fixtures.pages.browsing import photographer

    return photographer(request)
