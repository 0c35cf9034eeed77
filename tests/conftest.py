"""Fixtures every test may ask for."""

pytest_plugins = ["tests.fixtures.redis_server", "tests.fixtures.scorer_packages"]
