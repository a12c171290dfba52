"""What can be asked: instants that the store's times can hold."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import get_args

import pytest

from tallyman.asked import windows_of
from tallyman.errors import UsageQueryError
from tallyman.period import FIRST_MOMENT, LAST_MOMENT
from tallyman.usage import UsageQuery, Window


@pytest.mark.parametrize("window", get_args(Window))
@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/St_Johns", "UTC"])
def test_windows_of_all_that_can_be_stored_begin_in_1970_and_end_in_2106(window: Window, zone: str) -> None:
    march, january = datetime(1970, 3, 1, tzinfo=UTC), datetime(2106, 1, 1, tzinfo=UTC)
    for start, end in ((FIRST_MOMENT, march), (january, LAST_MOMENT)):
        windows = windows_of(UsageQuery(meter="host.cpu", start=start, end=end, window=window, zone=zone))
        assert (windows.start, windows.end) == (start.timestamp(), end.timestamp())


@pytest.mark.parametrize("moment", ["1969-12-31T23:59:00Z", "0001-01-01T00:00:00Z", "2106-02-07T06:29:00Z",
                                    "9999-12-31T23:59:00Z"])  # fmt: skip
def test_what_cannot_be_stored_cannot_be_asked_for(moment: str) -> None:
    beyond, within = datetime.fromisoformat(moment), datetime(2026, 10, 1, tzinfo=UTC)
    for name, query in (
        ("from", UsageQuery(meter="host.cpu", start=beyond, end=within)),
        ("to", UsageQuery(meter="host.cpu", start=within, end=beyond)),
    ):
        with pytest.raises(UsageQueryError, match=f"{name}: expected an instant from 1970 to 2106"):
            windows_of(query)
