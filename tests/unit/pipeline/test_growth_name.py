"""The topic that follows has a name that Kafka takes; nothing is opened to find that out."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.growth import plan_growth
from tallyman.config import TallymanConfig
from tallyman.errors import ConfigError
from tallyman.project import Project


@pytest.mark.parametrize("name", ["bad name", "", "..", "a" * 250, "usage/v2", "förbrukning"])
def test_a_name_that_kafka_does_not_take_is_refused_before_anything_is_done(tmp_path: Path, name: str) -> None:
    project = Project(folder=tmp_path, data=tmp_path / "data", config=TallymanConfig(), meters=())
    with pytest.raises(ConfigError, match=f'--name: expected 1 to 249 of the letters .*, got "{name}"'):
        plan_growth(project, 8, name)
    assert not (tmp_path / "data").exists()
