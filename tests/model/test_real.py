"""The real writer, reader and sealer, on the real tables, keep every invariant of the model through random
schedules.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model import real
from tests.model.chunk_check import run_schedule
from tests.model.chunk_model import Rules
from tests.model.server import running_clickhouse

SCHEDULES = 30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[real.Endpoint]:
    folder: Path = tmp_path_factory.mktemp("model")
    with running_clickhouse(folder) as endpoint:
        yield endpoint


@pytest.fixture
def real_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's oracle asks for home and meter as the real code answers them."""
    monkeypatch.setattr(real.chunk_check, "home", real.real_home)
    monkeypatch.setattr(real.chunk_check, "meter", real.real_meter)


def test_the_model_itself_holds_through_300_schedules() -> None:
    for seed in range(300):
        run_schedule(seed, Rules())


@pytest.mark.integration
@pytest.mark.parametrize("seed", range(SCHEDULES))
@pytest.mark.usefixtures("real_oracle")
def test_kills_zombies_failed_inserts_and_clock_steps_change_no_figure(seed: int, server: real.Endpoint) -> None:
    real.run_schedule(seed, server)
