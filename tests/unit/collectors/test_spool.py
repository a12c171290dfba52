"""What the spool promises: accepted is durable, numbers never come twice, damage is reported and never fatal."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collectors import segments
from collectors.segments import Position
from collectors.spool import Batch, Spool
from tallyman.errors import SpoolFullError, StackError

MEBIBYTE = 1024 * 1024


def append(spool: Spool, text: str, state: str = "") -> int:
    return spool.append(text.encode(), watermark_us=7, rows=1, state=(state or text).encode())


def drain(spool: Spool) -> list[Batch]:
    batches, at = [], None
    while (batch := spool.read(at)) is not None:
        batches.append(batch)
        at = batch.end
    return batches


def texts(spool: Spool) -> list[str]:
    return [batch.payload.decode() for batch in drain(spool)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def newest_segment(folder: Path) -> Path:
    return segments.path_of(folder, segments.list_numbers(folder)[-1])


def test_what_was_accepted_is_there_after_a_restart(folder: Path) -> None:
    spool = Spool(folder, max_bytes=MEBIBYTE)
    epoch, numbers = spool.epoch, [append(spool, f"batch {n} of Zoë Åström") for n in range(3)]
    spool.close()
    again = Spool(folder, max_bytes=MEBIBYTE)
    assert [(b.epoch, b.sequence, b.payload.decode(), b.watermark_us, b.rows) for b in drain(again)] == [
        (epoch, number, f"batch {n} of Zoë Åström", 7, 1) for n, number in enumerate(numbers)
    ]


def test_the_state_comes_back_with_the_newest_batch(folder: Path) -> None:
    spool = Spool(folder, max_bytes=MEBIBYTE)
    append(spool, "a", state="counters at 1")
    append(spool, "b", state="counters at 2")
    spool.close()
    assert Spool(folder, max_bytes=MEBIBYTE).state == b"counters at 2"


def test_the_state_and_the_number_survive_when_everything_is_acknowledged(folder: Path) -> None:
    spool = Spool(folder, max_bytes=MEBIBYTE, segment_bytes=4096)
    for n in range(40):
        last = append(spool, "x" * 1000, state=f"counters at {n}")
    for batch in drain(spool):
        spool.acknowledge(batch.end)
    spool.save()
    spool.close()
    again = Spool(folder, max_bytes=MEBIBYTE)
    assert (again.state, drain(again)) == (b"counters at 39", [])
    assert append(again, "next") == last + 1


def test_two_spools_never_have_the_same_epoch(tmp_path: Path) -> None:
    assert Spool(tmp_path / "a", max_bytes=MEBIBYTE).epoch != Spool(tmp_path / "b", max_bytes=MEBIBYTE).epoch


def test_only_what_kafka_has_is_forgotten(folder: Path) -> None:
    spool = Spool(folder, max_bytes=MEBIBYTE)
    for text in "abc":
        append(spool, text)
    first = spool.read()
    assert first is not None
    spool.acknowledge(first.end)
    spool.save()
    spool.close()
    assert texts(Spool(folder, max_bytes=MEBIBYTE)) == ["b", "c"]


def test_a_lost_acknowledged_file_sends_again_the_same_bytes_under_the_same_numbers(folder: Path) -> None:
    spool = Spool(folder, max_bytes=MEBIBYTE)
    for text in "abc":
        append(spool, text)
    before = drain(spool)
    spool.acknowledge(before[1].end)
    spool.save()
    spool.close()
    (folder / "acknowledged.json").write_bytes(b"")
    assert drain(Spool(folder, max_bytes=MEBIBYTE)) == before


def test_acknowledged_segments_are_deleted_and_room_comes_back(folder: Path) -> None:
    spool = Spool(folder, max_bytes=200_000, segment_bytes=20_000)
    with pytest.raises(SpoolFullError, match="expected at most 200000 bytes"):
        while True:
            append(spool, "x" * 5000)
    accepted = drain(spool)
    assert spool.used_bytes <= 200_000
    spool.acknowledge(accepted[len(accepted) // 2].end)
    append(spool, "y")
    assert len(drain(spool)) == len(accepted) - len(accepted) // 2
    assert spool.used_bytes == sum(path.stat().st_size for path in folder.glob("*.spool"))


def test_a_full_spool_keeps_all_that_it_accepted(folder: Path) -> None:
    spool = Spool(folder, max_bytes=100_000)
    accepted = []
    with pytest.raises(SpoolFullError):
        for n in range(10_000):
            append(spool, f"{n} " + "x" * 999)
            accepted.append(n)
    spool.close()
    assert [int(text.split()[0]) for text in texts(Spool(folder, max_bytes=100_000))] == accepted


def test_a_second_agent_on_the_same_spool_is_refused(folder: Path) -> None:
    spool = Spool(folder, max_bytes=MEBIBYTE)
    with pytest.raises(StackError, match="another agent holds this spool"):
        Spool(folder, max_bytes=MEBIBYTE)
    spool.close()
    Spool(folder, max_bytes=MEBIBYTE).close()


def test_a_waiting_reader_gets_the_next_batch(folder: Path) -> None:
    import threading

    spool = Spool(folder, max_bytes=MEBIBYTE)
    got: list[Batch | None] = []
    reader = threading.Thread(target=lambda: got.append(spool.wait(None, 30)))
    reader.start()
    append(spool, "late")
    reader.join(10)
    assert [batch and batch.payload for batch in got] == [b"late"]


# Torn tails and damage


def test_a_tail_torn_at_any_byte_is_cut_and_its_number_is_not_used_again(tmp_path: Path) -> None:
    """For every length of the last record that a crash may leave."""
    source = tmp_path / "source"
    spool = Spool(source, max_bytes=MEBIBYTE)
    numbers = [append(spool, text) for text in ("first", "second", "last")]
    spool.close()
    content = newest_segment(source).read_bytes()
    last = content.rfind(b"TLY1")
    for length in range(last, len(content)):
        folder = tmp_path / "torn"
        shutil.copytree(source, folder)
        newest_segment(folder).write_bytes(content[:length])
        torn = Spool(folder, max_bytes=MEBIBYTE)
        assert texts(torn) == ["first", "second"], f"cut at {length}"
        assert torn.state == b"second"
        number = append(torn, "another")
        assert number >= numbers[-1] if length == last else number > numbers[-1]
        assert torn.set_aside_bytes == 0
        torn.close()
        again = Spool(folder, max_bytes=MEBIBYTE)
        assert texts(again) == ["first", "second", "another"]
        assert again.set_aside_bytes == 0
        again.close()
        shutil.rmtree(folder)


def test_the_number_of_a_torn_batch_is_filled_before_the_next_and_never_used_for_another(folder: Path) -> None:
    spool = Spool(folder, max_bytes=MEBIBYTE)
    for text in ("first", "second"):
        append(spool, text)
    spool.close()
    os.truncate(newest_segment(folder), newest_segment(folder).stat().st_size - 3)
    again = Spool(folder, max_bytes=MEBIBYTE)
    assert again.torn == 2
    again.fill(b"empty", watermark_us=7)
    assert again.state == b"first"
    again.close()
    last = Spool(folder, max_bytes=MEBIBYTE)
    assert last.torn is None
    last.fill(b"not again", watermark_us=7)
    append(last, "third")
    assert [(batch.sequence, batch.payload) for batch in drain(last)] == [(1, b"first"), (2, b"empty"), (3, b"third")]


def test_a_tail_of_zeros_may_have_held_several_numbers(folder: Path) -> None:
    spool = Spool(folder, max_bytes=MEBIBYTE)
    append(spool, "first")
    spool.close()
    with newest_segment(folder).open("ab") as file:
        file.write(bytes(4096))
    again = Spool(folder, max_bytes=MEBIBYTE)
    assert again.torn is None
    assert append(again, "second") > 4096 // 60


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_anywhere_loses_no_more_than_the_records_it_touches(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / os.urandom(8).hex()
    spool = Spool(folder, max_bytes=MEBIBYTE, segment_bytes=20_000)
    for n in range(60):
        append(spool, f"{n} " + "ü" * 300)
    before = drain(spool)
    spool.close()
    paths = sorted(folder.glob("*.spool"))
    assert len(paths) > 1
    path = data.draw(st.sampled_from(paths[:-1]))
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.integers(1, 40))
    for place in range(start, min(start + length, len(content))):
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    again = Spool(folder, max_bytes=MEBIBYTE)
    after = drain(again)
    lost = [batch for batch in before if batch not in after]
    assert len(lost) <= 2
    assert [batch for batch in before if batch in after] == after
    assert again.set_aside_bytes > 0
    assert any((folder / "set-aside").iterdir())
    assert append(again, "goes on") > before[-1].sequence
    again.close()


def test_a_newest_segment_that_lost_batches_kafka_knows_begins_a_new_epoch_without_state(folder: Path) -> None:
    """Else numbers would come twice, and the interval that went with them would be billed twice."""
    spool = Spool(folder, max_bytes=MEBIBYTE)
    epoch = spool.epoch
    for text in "abc":
        append(spool, text)
    place = newest_segment(folder).stat().st_size
    append(spool, "d")
    spool.acknowledge(drain(spool)[-1].end)
    spool.save()
    spool.close()
    os.truncate(newest_segment(folder), place)
    again = Spool(folder, max_bytes=MEBIBYTE)
    assert again.epoch != epoch
    assert again.state == b""
    append(again, "e")
    assert [(batch.epoch, batch.sequence) for batch in drain(again)][-1] == (again.epoch, 1)


def test_a_newest_segment_of_nonsense_is_set_aside_and_the_agent_starts(folder: Path) -> None:
    spool = Spool(folder, max_bytes=MEBIBYTE)
    append(spool, "a")
    spool.close()
    newest_segment(folder).write_bytes(b"\x00" * 5000)
    again = Spool(folder, max_bytes=MEBIBYTE)
    append(again, "b")
    assert texts(again) == texts(again) == ["b"]
    assert again.set_aside_bytes == 5000


# kill -9 and disks

APPENDER = """
import os, sys
from pathlib import Path
from collectors.spool import Spool
spool = Spool(Path(sys.argv[1]), max_bytes=1 << 30, segment_bytes=20_000)
while True:
    content = os.urandom(400).hex()
    number = spool.append(content.encode(), watermark_us=0, rows=1, state=content[:20].encode())
    os.write(1, f"{spool.epoch} {number} {content}\\n".encode())
"""


@pytest.mark.parametrize("after", [1, 40, 160])
def test_kill_9_loses_nothing_that_was_reported_accepted(folder: Path, after: int) -> None:
    """Several rounds on one spool; no number comes twice with other bytes."""
    reported: dict[tuple[str, int], str] = {}
    for round_ in range(3):
        child = subprocess.Popen([sys.executable, "-c", APPENDER, str(folder)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(after + round_ * 7)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().splitlines(keepends=True)
        child.wait()
        spool = Spool(folder, max_bytes=1 << 30)
        found = {(batch.epoch, batch.sequence): batch.payload.decode() for batch in drain(spool)}
        assert len(found) == len(drain(spool))
        for line in lines:
            if not line.endswith(b"\n"):
                continue  # killed while it was reporting
            epoch, number, content = line.decode().split()
            assert found[epoch, int(number)] == content
        assert reported.items() <= found.items()
        assert spool.state.decode() == list(found.values())[-1][:20]
        reported = found
        spool.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB of its own."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root; the next test does without")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=False)


def test_a_full_disk_refuses_loses_nothing_and_goes_on_when_room_appears(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * 100_000)
    folder = small_disk / "spool"
    spool = Spool(folder, max_bytes=64 * MEBIBYTE, segment_bytes=30_000)
    accepted = []
    with pytest.raises(SpoolFullError, match="the disk is full"):
        for n in range(1000):
            append(spool, f"{n} " + "x" * 999)
            accepted.append(f"{n} " + "x" * 999)
    assert texts(spool) == accepted
    spool.save()
    ballast.unlink()
    append(spool, "room again")
    spool.close()
    assert texts(Spool(folder, max_bytes=64 * MEBIBYTE)) == [*accepted, "room again"]


def test_acknowledging_makes_room_on_a_full_disk(small_disk: Path) -> None:
    spool = Spool(small_disk / "spool", max_bytes=64 * MEBIBYTE, segment_bytes=30_000)
    with pytest.raises(SpoolFullError):
        while True:
            append(spool, "x" * 1000)
    batches = drain(spool)
    spool.acknowledge(batches[-1].end)
    spool.save()
    append(spool, "room again")
    spool.close()


def test_a_record_written_half_is_taken_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a failed append left must not count as accepted after a crash: the caller bills it again."""
    spool = Spool(folder, max_bytes=MEBIBYTE)
    append(spool, "a")
    size = newest_segment(folder).stat().st_size
    with monkeypatch.context() as patch:

        def fail(file: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(SpoolFullError, match="the disk is failing"):
            append(spool, "b")
    assert newest_segment(folder).stat().st_size == size
    append(spool, "c")
    assert texts(spool) == ["a", "c"]


def test_a_segment_that_may_stand_on_the_disk_is_begun_again_before_anything_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else batches behind an older mark would be forgotten, and their numbers used again, after a crash."""
    spool = Spool(folder, max_bytes=MEBIBYTE, segment_bytes=10_000)
    append(spool, "x" * 9000, state="s")
    with monkeypatch.context() as patch:

        def fail(path: Path) -> None:
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr(segments, "sync_folder", fail)
        with pytest.raises(SpoolFullError):
            append(spool, "y" * 9000, state="s")
    small = append(spool, "small")
    spool.close()
    again = Spool(folder, max_bytes=MEBIBYTE)
    assert texts(again)[1:] == ["small"]
    assert append(again, "next") == small + 1


def test_places_are_ordered_by_segment_and_then_by_byte() -> None:
    assert Position(1, 900) < Position(2, 0) < Position(2, 1)
