"""Cases copied from the test suites and documents of other billing systems, with their answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BILLING = Path(__file__).parent / "data" / "billing_cases.json"


def billing_cases(*models: str) -> list[dict[str, Any]]:
    """Return the cases of some models, without those whose answers are not to be copied."""
    cases: list[dict[str, Any]] = json.loads(BILLING.read_text("utf-8"))["cases"]
    return [case for case in cases if case["model"] in models and not case.get("divergent")]
