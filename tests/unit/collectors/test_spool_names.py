"""The small files beside the spool's segments, the name it was sent under and the place Kafka has, and a bad disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from collectors.spool import Spool
from tallyman.errors import SpoolFullError
from tests.unit.collectors.test_spool import MEBIBYTE, append, drain, newest_segment, texts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@contextmanager
def refusing(call: str, number: int = errno.ENOSPC) -> Iterator[None]:
    """Let the disk refuse a system call."""

    def fail(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, call, fail)
        yield


def test_under_another_name_what_is_here_keeps_the_old_one_and_numbers_begin_anew(folder: Path) -> None:
    """Kafka may have it under the old name already: sent under the new one it would count twice."""
    spool = Spool(folder, max_bytes=MEBIBYTE)
    spool.name_epoch("before")
    append(spool, "a", "counters at a")
    spool.close()
    again = Spool(folder, max_bytes=MEBIBYTE)
    again.name_epoch("after")
    assert again.state == b"counters at a"
    append(again, "b")
    again.close()
    for _ in range(2):
        again = Spool(folder, max_bytes=MEBIBYTE)
        again.name_epoch("after")
        assert [(batch.collector, batch.sequence) for batch in drain(again)] == [("before", 1), ("after", 1)]
        assert len({batch.epoch for batch in drain(again)}) == 2
        again.close()


def test_a_name_that_a_full_disk_did_not_take_begins_its_epoch_with_the_next_batch(folder: Path) -> None:
    spool = Spool(folder, max_bytes=MEBIBYTE)
    spool.name_epoch("before")
    append(spool, "a")
    spool.close()
    again = Spool(folder, max_bytes=MEBIBYTE)
    with refusing("fsync"):
        again.name_epoch("after")
    append(again, "b")
    again.close()
    last = Spool(folder, max_bytes=MEBIBYTE)
    last.name_epoch("after")
    append(last, "c")
    assert [(batch.collector, batch.sequence) for batch in drain(last)] == [("before", 1), ("after", 1), ("after", 2)]


@pytest.mark.parametrize(
    ("number", "told"),
    [(errno.ENOSPC, r"full \(No space left on device\).*df -i"), (errno.EROFS, "failing .*let it be written again")],
)
def test_a_disk_that_refuses_says_what_helps(folder: Path, number: int, told: str) -> None:
    spool = Spool(folder, max_bytes=MEBIBYTE)
    with refusing("fdatasync", number), pytest.raises(SpoolFullError, match=told):
        append(spool, "a")
    append(spool, "b")
    assert texts(spool) == ["b"]


def test_a_sector_that_cannot_be_read_is_said_with_its_file_and_skips_nothing(folder: Path) -> None:
    """It may be a cable: what was accepted is not given up for it."""
    spool = Spool(folder, max_bytes=MEBIBYTE)
    append(spool, "a")
    with refusing("pread", errno.EIO):
        with pytest.raises(OSError, match=newest_segment(folder).name):
            spool.read()
        spool.close()
        with pytest.raises(OSError, match=newest_segment(folder).name):
            Spool(folder, max_bytes=MEBIBYTE)
    assert texts(Spool(folder, max_bytes=MEBIBYTE)) == ["a"]


def test_a_name_that_a_full_disk_did_not_take_is_saved_when_there_is_room(folder: Path) -> None:
    spool = Spool(folder, max_bytes=MEBIBYTE)
    with refusing("fsync"):
        spool.name_epoch("before")
    append(spool, "a")
    spool.save()
    spool.close()
    again = Spool(folder, max_bytes=MEBIBYTE)
    again.name_epoch("after")
    assert [batch.collector for batch in drain(again)] == ["before"]


def test_a_spool_of_an_older_version_gets_its_name_and_keeps_its_place(folder: Path) -> None:
    spool = Spool(folder, max_bytes=MEBIBYTE)
    append(spool, "a")
    end = drain(spool)[-1].end
    append(spool, "b")
    spool.close()
    (folder / "acknowledged.json").write_text(f"[{end.segment},{end.offset}]")
    again = Spool(folder, max_bytes=MEBIBYTE)
    again.name_epoch("a name")
    assert again.epoch == spool.epoch
    assert [(batch.collector, batch.payload) for batch in drain(again)] == [("a name", b"b")]


@pytest.mark.parametrize("lost", ["names.json of an older version", "names.json, damaged"])
def test_what_waits_of_an_epoch_without_a_name_is_sent_under_one_and_keeps_it(folder: Path, lost: str) -> None:
    """Without a name it would be a dead letter, and gone from here: usage that was accepted."""
    spool = Spool(folder, max_bytes=MEBIBYTE)
    spool.name_epoch("first")
    append(spool, "a")
    spool.name_epoch("second")
    append(spool, "b")
    spool.close()
    names = folder / "names.json"
    if lost.endswith("damaged"):
        names.write_bytes(names.read_bytes()[:-3])
    else:
        names.unlink()
    again = Spool(folder, max_bytes=MEBIBYTE)
    again.name_epoch("second")
    assert [batch.collector for batch in drain(again)] == ["second", "second"]
    again.close()
    renamed = Spool(folder, max_bytes=MEBIBYTE)
    renamed.name_epoch("third")
    assert [batch.collector for batch in drain(renamed)] == ["second", "second"]


def test_no_flipped_bit_in_the_acknowledged_place_loses_a_batch(folder: Path) -> None:
    spool = Spool(folder, max_bytes=MEBIBYTE)
    append(spool, "a")
    spool.acknowledge(drain(spool)[-1].end)
    for text in "bcdefghij":
        append(spool, text)
    spool.save()
    spool.close()
    place = folder / "acknowledged.json"
    good = place.read_bytes()
    for bit in range(8 * len(good)):
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        place.write_bytes(flipped)
        again = Spool(folder, max_bytes=MEBIBYTE)
        assert texts(again)[-9:] == list("bcdefghij"), bytes(flipped)
        again.close()
