"""What a file of meters may not say, with file, line and what to write; what is in force may say it still."""

from __future__ import annotations

from pathlib import Path

import pytest

from tallyman.errors import ConfigError
from tallyman.meter import Definitions, Meter, decode_definitions, encode_definitions
from tallyman.project import load_meters

# (what a meter says, the key at which it is refused and the words)
WRONG = {
    "an end of changes": ('aggregation: time_weighted, level: delta, ends_on: {gone: ["yes"]}',
                          "ends_on: expected only with level: absolute, got delta"),
    "an end that is nothing": ("aggregation: time_weighted, ends_on: {gone: []}",
                               "ends_on.gone: expected one text at least, got none"),
    "a dimension called subject": ("aggregation: sum, dimensions: {subject: mail.subject}",
                                   "dimensions.subject: expected another name"),
    "a believed_for of a thousand years": ("aggregation: lifecycle, state: s, states: [up], believed_for: 365000d",
                                           "believed_for: expected a duration of at most 36500d"),
    "events of no age at all": ("aggregation: sum, oldest_accepted: 0s", "oldest_accepted: expected more than 0 s"),
    "a path in the words of a query": ("aggregation: count, dimensions: {app: 'labels[\"app\"]'}",
                                       "dimensions.app: expected a path of names with dots between"),
    "a path of Windows": (r"aggregation: sum, value: '\Processor(_Total)\% Processor Time'",
                          "value: expected a path of names with dots between"),
    "a filter at no path": ('aggregation: count, where: {"a\\tb": [c]}', "where: expected a path of names"),
    "a factor of other digits": ('aggregation: sum, multiply_by: "٩"', "multiply_by: expected a fraction in digits"),
    "a zero point with an underscore": ('aggregation: sum, add: "-1_0"', "add: expected a fraction in digits"),
} | {
    f"a percentile such as {text}": (f'aggregation: percentile, percentile: "{text}"',
                                     'percentile: expected a plain number such as "95" or "99.9"')
    for text in ("95 ", " 95", "9_5", "9__5", "٩٥", "95\\n", "9.5e1", "95.", "-0")
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_meter_that_would_not_do_what_it_says_is_refused_at_its_line(tmp_path: Path, case: str) -> None:
    says, said = WRONG[case]
    (tmp_path / "m.yaml").write_text(f"meters:\n  - {{meter: m, event_type: t, {says}}}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_meters(tmp_path)
    assert f"m.yaml:2: meters[0].{said}" in str(refused.value)


@pytest.mark.parametrize("text", ["95", "99.9", "0", "100", "050.50"])
def test_a_plain_percentile_is_taken_as_it_stands(tmp_path: Path, text: str) -> None:
    says = f'{{meter: m, event_type: t, aggregation: percentile, percentile: "{text}"}}'
    (tmp_path / "m.yaml").write_text(f"meters:\n  - {says}\n", encoding="utf-8")
    assert [meter.percentile for meter in load_meters(tmp_path)] == [text]


def test_what_was_put_in_force_before_it_was_refused_is_read_as_ever() -> None:
    """A replay needs the old definitions, and the same bytes of them."""
    meters = (
        Meter(meter="a", event_type="t", aggregation="percentile", percentile=" 9_5 "),
        Meter(meter="b", event_type="t", aggregation="time_weighted", level="delta", ends_on={"gone": ("yes",)}),
        Meter(meter="c", event_type="t", aggregation="sum", dimensions={"subject": "to"}, multiply_by="1_0"),
    )
    definitions = Definitions(number=7, meters=meters)
    assert decode_definitions(encode_definitions(definitions)) == definitions
