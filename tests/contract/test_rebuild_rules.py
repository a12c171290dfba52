"""The rules of the rebuild's model have their names where the code keeps them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model.rebuild_model import ADDED

ROOT = Path(__file__).resolve().parents[2]
KEPT_IN = ("pipeline/rebuild.py", "pipeline/as_booked.py", "pipeline/switch.py", "tallyman/rebuilds.py",
           "tallyman/generations.py")  # fmt: skip


@pytest.mark.parametrize("rule", ADDED)
def test_a_rule_of_the_model_is_named_where_it_is_kept(rule: str) -> None:
    assert [name for name in KEPT_IN if f"`{rule}`" in (ROOT / name).read_text("utf-8")]
