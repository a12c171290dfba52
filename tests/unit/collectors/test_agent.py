"""What the agent promises, with clocks and sources of our own."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from collectors.agent import Agent, open_collectors
from collectors.intervals import SECOND_US, Counter, Level, Moment, Sample
from collectors.spool import Spool
from tallyman.errors import ConfigError

BOOT = "fdb697d9-324e-4f96-a6ff-0d7e4ac60aaa"
NOON_US = 1_793_620_800 * SECOND_US  # 2026-11-02T12:00:00Z
INTERVAL_US = 10 * SECOND_US
MINUTE_US = 60 * SECOND_US


class Machine:
    """A host whose clocks and counter a test moves: it receives 1000 bytes each second."""

    name = "host"

    def __init__(self) -> None:
        self.wall_us, self.boot_us = NOON_US + 3_200_000, 3600 * SECOND_US
        self.boot_id = BOOT
        self.is_broken = False
        self.too_much = 0
        self.has_nothing = False

    def clocks(self) -> Moment:
        return Moment(self.wall_us, self.boot_us, self.boot_id)

    def passes(self, microseconds: int) -> None:
        self.wall_us += microseconds
        self.boot_us += microseconds

    def read(self) -> Sequence[Sample]:
        if self.is_broken:
            raise OSError("No such file or directory: /proc/net/dev")
        if self.has_nothing:
            return []
        data = {"interface": "eth0", "direction": "in"}
        received = self.boot_us // 1000 + self.too_much
        return [
            Counter("tallyman.host.network", data, received, 0, f"{self.boot_id}/4"),
            Level("tallyman.host.memory", {}, 1_000_000),
        ]


class Bench:
    """An agent on a machine, and what it wrote."""

    def __init__(self, folder: Path, machine: Machine, *, interval_us: int = INTERVAL_US, **options: int) -> None:
        self.folder, self.machine, self.interval_us = folder, machine, interval_us
        self.options = {"max_bytes": 10_000_000} | options
        self.start()

    def start(self, subject: str = "Zoë Åström") -> None:
        self.spool = Spool(self.folder, **self.options)
        now = self.machine.clocks()
        self.agent = Agent(self.spool, [self.machine], subject=subject, interval_us=self.interval_us, now=now)

    def crash(self) -> None:
        """Forget everything that is not on disk."""
        self.spool.close()

    def runs(self, seconds: float, *, lateness: random.Random | None = None) -> None:
        until_us = self.machine.boot_us + int(seconds * SECOND_US)
        while self.machine.boot_us < until_us:
            sleep_us = int(self.agent.step(self.machine.clocks()) * SECOND_US)
            late_us = lateness.randrange(0, 900_000) if lateness else 0
            self.machine.passes(max(min(sleep_us + late_us, until_us - self.machine.boot_us), 1000))

    def batches(self) -> list[tuple[int, list[dict[str, int]], list[dict[str, object]]]]:
        found, place = [], None
        while (batch := self.spool.read(place)) is not None:
            place = batch.end
            table = pa.ipc.open_stream(batch.payload).read_all()
            series = json.loads(table.schema.metadata[b"tallyman.series"])
            found.append((batch.watermark_us, table.to_pylist(), series))
        return found

    def numbers(self) -> list[int]:
        found, place = [], None
        while (batch := self.spool.read(place)) is not None:
            place = batch.end
            found.append(batch.sequence)
        return found

    def rows(self, kind: str) -> list[dict[str, int]]:
        return [row for _, rows, series in self.batches() for row in rows if series[row["series"]]["type"] == kind]


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def bench(tmp_path: Path, machine: Machine) -> Bench:
    return Bench(tmp_path / "spool", machine)


NETWORK, MEMORY = "tallyman.host.network", "tallyman.host.memory"


def chain_holds(rows: list[dict[str, int]]) -> bool:
    return all(one["last"] == two["first"] for one, two in itertools.pairwise(rows))


def test_sixty_intervals_never_cross_a_minute(bench: Bench) -> None:
    """Although the agent wakes late each time."""
    bench.runs(600, lateness=random.Random(7))
    rows = bench.rows(NETWORK)
    assert len(rows) >= 60
    for row in rows:
        assert row["time_us"] // MINUTE_US == (row["until_us"] - 1) // MINUTE_US
        assert row["until_us"] % INTERVAL_US == 0


def test_times_grow_never_lie_ahead_and_leave_no_hole(bench: Bench, machine: Machine) -> None:
    bench.runs(120, lateness=random.Random(8))
    rows = bench.rows(NETWORK)
    assert all(one["until_us"] == two["time_us"] for one, two in itertools.pairwise(rows))
    assert rows[-1]["until_us"] <= machine.wall_us
    assert chain_holds(rows)


def test_what_is_billed_is_what_the_counter_counted(bench: Bench, machine: Machine) -> None:
    started = machine.boot_us // 1000
    bench.runs(300, lateness=random.Random(9))
    bench.agent.finish(machine.clocks())
    assert sum(row["value"] for row in bench.rows(NETWORK)) == machine.boot_us // 1000 - started
    assert sum(row["value"] for row in bench.rows(MEMORY)) == 1_000_000 * (machine.boot_us // 1000 - started)


def test_each_batch_says_up_to_where_everything_was_sent(bench: Bench) -> None:
    bench.runs(60)
    batches = bench.batches()
    for (watermark_us, _, _), (_, rows, _) in itertools.pairwise(batches):
        assert all(row["time_us"] >= watermark_us for row in rows)
    marks = [watermark_us for watermark_us, _, _ in batches]
    assert marks == sorted(marks)


def test_names_are_unicode_and_counters_carry_their_incarnation(bench: Bench) -> None:
    bench.runs(20)
    series = bench.batches()[-1][2]
    assert {one["subject"] for one in series} == {"Zoë Åström"}
    assert {str(one["incarnation"]) for one in series} == {f"{BOOT}/4", ""}


def test_heartbeats_are_sent_while_a_long_interval_has_nothing_to_say(tmp_path: Path, machine: Machine) -> None:
    bench = Bench(tmp_path / "spool", machine, interval_us=MINUTE_US)
    bench.runs(115)
    empty = [watermark_us for watermark_us, rows, _ in bench.batches() if not rows]
    assert 8 <= len(empty) <= 12
    assert bench.batches()[1][0] == bench.batches()[2][0], "a heartbeat promises nothing that was not measured"


# Crashes, full disks, broken sources


@pytest.mark.parametrize("down_s", [0.5, 25, 3600])
def test_a_crash_loses_and_doubles_nothing_of_the_same_boot(bench: Bench, machine: Machine, down_s: float) -> None:
    started = machine.boot_us // 1000
    bench.runs(47)
    bench.crash()
    machine.passes(int(down_s * SECOND_US))
    bench.start()
    bench.runs(33)
    bench.agent.finish(machine.clocks())
    rows = bench.rows(NETWORK)
    assert chain_holds(rows)
    assert sum(row["value"] for row in rows) == machine.boot_us // 1000 - started


def test_a_batch_that_a_crash_tore_leaves_no_number_missing(bench: Bench, machine: Machine) -> None:
    """Else usage would be called too low for ever, though the next reading holds it."""
    started = machine.boot_us // 1000
    bench.runs(25)
    bench.crash()
    newest = max(bench.folder.glob("*.spool"))
    os.truncate(newest, newest.stat().st_size - 7)
    bench.start()
    bench.runs(25)
    bench.agent.finish(machine.clocks())
    bench.crash()
    bench.start()
    bench.runs(5)
    numbers = bench.numbers()
    assert numbers == list(range(1, len(numbers) + 1))
    rows = bench.rows(NETWORK)
    assert chain_holds(rows)
    assert sum(row["value"] for row in rows) == rows[-1]["last"] - started


def test_the_reading_that_spans_a_restart_is_dated_at_its_start(bench: Bench, machine: Machine) -> None:
    bench.runs(20)
    last_until_us = bench.rows(NETWORK)[-1]["until_us"]
    bench.crash()
    machine.passes(600 * SECOND_US)
    bench.start()
    bench.agent.step(machine.clocks())
    row = bench.rows(NETWORK)[-1]
    assert (row["time_us"], row["until_us"]) == (last_until_us, machine.wall_us)


@pytest.mark.parametrize(("reboots", "whose"), [(False, "Zoë Åström"), (True, "the next")])
def test_what_was_used_before_the_host_got_another_subject_is_not_the_new_ones(
    bench: Bench, machine: Machine, reboots: bool, whose: str
) -> None:
    bench.runs(25)
    bench.crash()
    machine.passes(3 * 24 * 3600 * SECOND_US)
    if reboots:
        machine.boot_id, machine.boot_us = "another boot", 60 * SECOND_US
    bench.start(subject="the next")
    before = len(bench.batches())
    bench.runs(25)
    gap, *later = [{entry["subject"] for entry in series} for _, rows, series in bench.batches()[before:] if rows]
    assert gap == {whose}
    assert set.union(*later) == {"the next"}


@pytest.mark.parametrize(("down_s", "billed_s"), [(25, 25), (3600, 0)])
def test_memory_is_billed_over_a_short_restart_and_not_guessed_over_a_long_one(
    bench: Bench, machine: Machine, down_s: int, billed_s: int
) -> None:
    bench.runs(20)
    bench.agent.finish(machine.clocks())
    before = sum(row["value"] for row in bench.rows(MEMORY))
    bench.crash()
    machine.passes(down_s * SECOND_US)
    bench.start()
    bench.agent.finish(machine.clocks())
    assert sum(row["value"] for row in bench.rows(MEMORY)) - before == 1_000_000 * billed_s * 1000


def test_after_a_reboot_counters_begin_at_0(bench: Bench, machine: Machine) -> None:
    bench.runs(20)
    bench.crash()
    machine.wall_us += 300 * SECOND_US
    machine.boot_us, machine.boot_id = 60 * SECOND_US, "0b6a1c9e-7d55-4f0e-9a53-3c5a1d0f7e11"
    bench.start()
    bench.agent.step(machine.clocks())
    row = bench.rows(NETWORK)[-1]
    assert (row["first"], row["last"], row["value"]) == (0, 60_000, 60_000)
    assert row["time_us"] == machine.wall_us - 60 * SECOND_US


def test_a_full_spool_stops_accepting_says_so_and_catches_up(tmp_path: Path, machine: Machine) -> None:
    started = machine.boot_us // 1000
    bench = Bench(tmp_path / "spool", machine, max_bytes=60_000)
    bench.runs(3600)
    is_ready, why = bench.agent.readiness(machine.clocks())
    assert not is_ready
    assert "expected at most 60000 bytes" in why
    before = bench.rows(NETWORK)
    place = None
    while (batch := bench.spool.read(place)) is not None:
        place = batch.end
    assert place is not None
    bench.spool.acknowledge(place)
    bench.runs(30)
    bench.agent.finish(machine.clocks())
    after = bench.rows(NETWORK)
    assert bench.agent.readiness(machine.clocks()) == (True, "measuring")
    assert chain_holds(before + after)
    assert sum(row["value"] for row in before + after) == machine.boot_us // 1000 - started


def test_memory_is_metered_while_nothing_is_accepted(tmp_path: Path, machine: Machine) -> None:
    started = machine.boot_us // 1000
    bench = Bench(tmp_path / "spool", machine, max_bytes=60_000)
    bench.runs(3600)
    before = sum(row["value"] for row in bench.rows(MEMORY))
    place = None
    while (batch := bench.spool.read(place)) is not None:
        place = batch.end
    assert place is not None
    bench.spool.acknowledge(place)
    bench.agent.finish(machine.clocks())
    after = sum(row["value"] for row in bench.rows(MEMORY))
    assert before + after == 1_000_000 * (machine.boot_us // 1000 - started)


def test_a_source_that_cannot_be_read_is_spanned_by_the_next_reading(bench: Bench, machine: Machine) -> None:
    started = machine.boot_us // 1000
    bench.runs(30)
    machine.is_broken = True
    bench.runs(30)
    assert bench.agent.readiness(machine.clocks()) == (
        False,
        "host cannot be read: No such file or directory: /proc/net/dev",
    )
    machine.is_broken = False
    bench.runs(30)
    bench.agent.finish(machine.clocks())
    assert bench.agent.readiness(machine.clocks())[0]
    assert sum(row["value"] for row in bench.rows(NETWORK)) == machine.boot_us // 1000 - started


def test_a_number_beyond_64_bits_is_said_and_does_not_stop_the_agent(bench: Bench, machine: Machine) -> None:
    bench.runs(20)
    machine.too_much = 2**64
    bench.runs(20)
    is_ready, why = bench.agent.readiness(machine.clocks())
    assert (is_ready, "expected int64, got 18446" in why) == (False, True)
    machine.too_much = 0
    bench.runs(20)
    assert bench.agent.readiness(machine.clocks())[0]
    assert chain_holds(bench.rows(NETWORK))


def test_a_number_beyond_what_a_spool_can_note_does_not_stop_the_very_first_start(
    bench: Bench, machine: Machine
) -> None:
    machine.too_much = 512 * 2**64
    bench.runs(20)
    assert "expected int64" in bench.agent.readiness(machine.clocks())[1]
    assert len(bench.rows(MEMORY)) == 2


def test_an_agent_that_has_measured_nothing_for_three_intervals_is_not_ready(bench: Bench, machine: Machine) -> None:
    bench.runs(10)
    machine.passes(31 * SECOND_US)
    assert bench.agent.readiness(machine.clocks())[0] is False


# Clock steps


@pytest.mark.parametrize("step_s", [7200, 90, 2, -2, -15, -900])
def test_a_clock_step_neither_loses_nor_invents_usage(bench: Bench, machine: Machine, step_s: int) -> None:
    started = machine.boot_us // 1000
    bench.runs(33)
    machine.wall_us += step_s * SECOND_US
    bench.runs(max(0, -step_s) + 60)
    bench.agent.finish(machine.clocks())
    rows = bench.rows(NETWORK)
    assert chain_holds(rows)
    assert sum(row["value"] for row in rows) == machine.boot_us // 1000 - started
    assert sum(row["value"] for row in bench.rows(MEMORY)) == 1_000_000 * (machine.boot_us // 1000 - started)


@pytest.mark.parametrize("step_s", [7200, -15, -900])
def test_after_a_clock_step_no_time_lies_ahead_or_goes_back(bench: Bench, machine: Machine, step_s: int) -> None:
    bench.runs(33)
    machine.wall_us += step_s * SECOND_US
    for _ in range(100):
        written = len(bench.rows(NETWORK))
        bench.runs(min(abs(step_s), 900) / 50)
        assert all(row["until_us"] <= machine.wall_us for row in bench.rows(NETWORK)[written:])
    times = [row["time_us"] for row in bench.rows(NETWORK)]
    assert times == sorted(times)


def test_while_a_clock_that_was_set_back_is_waited_for_the_agent_says_so(bench: Bench, machine: Machine) -> None:
    bench.runs(33)
    machine.wall_us -= 900 * SECOND_US
    bench.runs(20)
    is_ready, why = bench.agent.readiness(machine.clocks())
    assert not is_ready
    assert "the wall clock was set back" in why
    bench.runs(900)
    assert bench.agent.readiness(machine.clocks())[0]


def test_a_host_that_has_nothing_to_meter_is_ready_again_when_its_clock_has_caught_up(
    bench: Bench, machine: Machine
) -> None:
    machine.has_nothing = True
    bench.runs(33)
    machine.wall_us -= 30 * SECOND_US
    bench.runs(10)
    assert not bench.agent.readiness(machine.clocks())[0]
    bench.runs(60)
    assert bench.agent.readiness(machine.clocks()) == (True, "measuring")


# Configuration and weight


def test_an_unknown_collector_or_option_names_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r'agent\.collectors\.hots: unknown collector; did you mean "host"'):
        open_collectors({"hots": {}})
    with pytest.raises(ConfigError, match=r'agent\.collectors\.host\.lopback: unknown option; did you mean "loopback"'):
        open_collectors({"host": {"lopback": True}})
    with pytest.raises(ConfigError, match=r"agent\.collectors\.host: .*cpu_modes"):
        open_collectors({"host": {"cpu_modes": ["usr"]}})


def test_options_arrive() -> None:
    (collector,) = open_collectors({"host": {"measure": ["memory"], "loopback": True}})
    assert [sample.type for sample in collector.read()] == ["tallyman.host.memory"]


HEAVY = ("apache_beam", "clickhouse_driver", "jinja2", "pyarrow", "numpy", "sqlalchemy", "pandas", "chdb")


def test_the_agent_with_everything_loaded_stays_far_below_60_mib() -> None:
    """The broker's side adds some 3 MiB: `bench/agent_memory.py` measures all of it."""
    code = "import collectors.agent, collectors.host; print(open('/proc/self/status').read())"
    status = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak_kib < 50 * 1024


@pytest.mark.parametrize("module", ["collectors", "collectors.agent", "collectors.host"])
def test_the_agent_loads_nothing_heavy(module: str) -> None:
    code = f"import {module}, sys; print(*sorted({{name.split('.')[0] for name in sys.modules}} & set({HEAVY})))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []
