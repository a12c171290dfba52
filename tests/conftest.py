"""What all tests share: the fixtures for real parts, and the marks of tests that need them."""

from __future__ import annotations

import pytest

pytest_plugins = ["tests.stack", "tests.postgres"]

MARKS = {
    "integration": "talks to a real Kafka or a real ClickHouse",
    "e2e": "runs the whole path, from the agent to the invoice",
    "chaos": "kills parts with -9 while events flow",
    "contract": "holds a recorded payload of somebody else's against our reading of it",
}


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
