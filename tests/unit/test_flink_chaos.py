"""What the chaos run on Flink says at its end."""

from __future__ import annotations

from tests.chaos.flink import VICTIMS, Outcome, report
from tests.flink.usage import Usage


def test_the_report_tells_the_longest_pause_of_each_victim_and_that_all_is_equal() -> None:
    outcome = Outcome(events=1200, took_s=61.4, recovered_s=[("worker", 2.0), ("service", 1.0), ("worker", 4.04)])
    assert report(outcome).splitlines() == [
        "1,200 events, 3 kills, 61 s",
        "  worker: killed 2, all partitions went on after at most 4.0 s",
        "  service: killed 1, all partitions went on after at most 1.0 s",
        "booked = sent, to the last digit; every chunk reconciles",
    ]


def test_a_difference_is_told_and_never_called_equal() -> None:
    said = report(Outcome(differences=["partition 1: a gap in the chunks [0, 2]"]))
    assert "1 differences, the first: ['partition 1: a gap" in said and "booked = sent" not in said
    assert set(VICTIMS) == {"task manager", "worker", "service"}


def test_what_is_sent_depends_on_the_seed_and_adds_up() -> None:
    first, again = Usage(4, seed=3), Usage(4, seed=3)
    homes = [record.partition for record in first.records(50)]
    assert homes == [record.partition for record in again.records(50)] and set(homes) <= set(range(4))
    assert first.events == again.events == sum(count for count, _ in first.totals.values())
