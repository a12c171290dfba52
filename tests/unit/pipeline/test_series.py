"""Series in columns are found as a dict would find them, and take a quarter of its room."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from pipeline.series import SeriesKey, SeriesTable

KEYS = st.builds(SeriesKey, st.integers(0, 3), st.sampled_from(["", "Zoë", "Łukasz"]), st.sampled_from(["{}", "[]"]))


@given(st.lists(KEYS, max_size=60))
def test_a_series_has_one_number_for_ever(keys: list[SeriesKey]) -> None:
    table, numbers = SeriesTable(), dict[SeriesKey, int]()
    for key in keys:
        assert table.number(key) == numbers.setdefault(key, len(numbers))
    assert list(table) == list(numbers) and len(table) == len(numbers)


def test_numbers_stay_while_the_table_grows_and_items_come_between() -> None:
    table = SeriesTable()
    numbers = {}
    for n in range(5_000):
        key = SeriesKey(n % 7, f"tenant-{n % 50}", f'{{"n":"{n}"}}')
        numbers[key] = table.number(key)
        if n % 10 == 0:
            item = table.append(SeriesKey(key.meter, key.subject, key.dimensions, "=1"))
            assert item == numbers[key] + 1
    assert all(table.number(key) == number and table[number] == key for key, number in numbers.items())
    assert len(table) == 5_500


def test_a_number_is_given_to_another_item() -> None:
    table = SeriesTable()
    number = table.append(SeriesKey(1, "Zoë", "{}", "=1"))
    table.replace(number, SeriesKey(2, "Łukasz", "[]", "=2"))
    assert table[number] == SeriesKey(2, "Łukasz", "[]", "=2") and len(table) == 1


def test_a_series_takes_few_bytes_beside_its_texts() -> None:
    table, size = SeriesTable(), 200_000
    texts = [f"tenant-{n}" for n in range(size)]
    tracemalloc.start()
    for text in texts:
        table.number(SeriesKey(0, text, "{}"))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(table) == size and held < 45 * size
