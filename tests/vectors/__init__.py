"""Cases copied from the test suites and documents of other systems, with their answers.

`billing_cases` are read by the tests that price; `python -m tests.vectors metering [FILE]` runs metering cases through
Kafka, the Beam job and ClickHouse.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "data"
BILLING = DATA / "billing_cases.json"
METERING = DATA / "metering_cases.json"


def billing_cases(*models: str) -> list[dict[str, Any]]:
    """Return the cases of some models, without those whose answers are not to be copied."""
    cases: list[dict[str, Any]] = json.loads(BILLING.read_text("utf-8"))["cases"]
    return [case for case in cases if case["model"] in models and not case.get("divergent")]
