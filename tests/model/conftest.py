"""One database for all schedules: each begins by emptying it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.model.server import running_clickhouse
from tests.model.store import Store


@pytest.fixture(scope="package")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with running_clickhouse(tmp_path_factory.mktemp("model")) as endpoint:
        made = Store(endpoint)
        yield made
        made.close()
