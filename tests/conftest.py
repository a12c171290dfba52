"""What all tests share: the fixtures for real parts, and the marks of tests that need them."""

from __future__ import annotations

import pytest

pytest_plugins = ["tests.stack", "tests.postgres"]

MARKS = {
    "integration": "talks to a real Kafka or a real ClickHouse",
    "e2e": "runs the whole path, from the agent to the invoice",
    "chaos": "kills parts with -9 while events flow",
    "contract": "holds a recorded payload of somebody else's against our reading of it",
    "long": "takes long and is left out of CI, which has 20 minutes; runs with --long",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run also what takes long and is left out of CI")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
