"""Kafka's jars: fetched once, checked, and never half."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tallyman.errors import StackError
from tallyman.local.jars import fetch_jars, kafka_files, read_lock, user_cache

CONTENT = {"org.apache.kafka:kafka_2.13:4.4.0": b"broker", "org.slf4j:slf4j-api:1.7.36": b"names"}


class Repository:
    """Stands for the network: serves `CONTENT`, counts what it was asked, fails as told."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.content = dict(CONTENT)
        self.broken = 0

    def __call__(self, coordinate: str, folder: Path) -> Path:
        self.asked.append(coordinate)
        folder.mkdir(parents=True)
        file = folder / "some.jar"
        if self.broken:
            self.broken -= 1
            file.write_bytes(b"bro")
            raise OSError("connection reset by peer")
        file.write_bytes(self.content[coordinate])
        return file


@pytest.fixture
def repository() -> Repository:
    return Repository()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    lines = [f"{hashlib.sha256(content).hexdigest()}  {name}" for name, content in CONTENT.items()]
    path = tmp_path / "jars.lock"
    path.write_text("# a comment\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_second_time_nothing_is_fetched(tmp_path: Path, lock: Path, repository: Repository) -> None:
    first = fetch_jars(tmp_path, lock=lock, download=repository)
    assert fetch_jars(tmp_path, lock=lock, download=repository) == first
    assert sorted(repository.asked) == sorted(CONTENT)
    assert [jar.read_bytes() for jar in first] == list(CONTENT.values())


def test_a_broken_connection_is_tried_again_from_the_start(tmp_path: Path, lock: Path, repository: Repository) -> None:
    repository.broken = 2
    assert [jar.read_bytes() for jar in fetch_jars(tmp_path, lock=lock, download=repository)] == list(CONTENT.values())


def test_a_download_that_was_cut_off_is_taken_up_again(tmp_path: Path, lock: Path, repository: Repository) -> None:
    """What is there and right is kept, what is half is fetched again."""
    [broker, _] = fetch_jars(tmp_path, lock=lock, download=repository)
    (broker.parent / "complete.json").unlink()
    broker.write_bytes(b"bro")
    repository.asked.clear()
    fetch_jars(tmp_path, lock=lock, download=repository)
    assert repository.asked == ["org.apache.kafka:kafka_2.13:4.4.0"]
    assert broker.read_bytes() == b"broker"


def test_a_jar_that_somebody_shortened_is_noticed(tmp_path: Path, lock: Path, repository: Repository) -> None:
    [broker, _] = fetch_jars(tmp_path, lock=lock, download=repository)
    broker.write_bytes(b"")
    fetch_jars(tmp_path, lock=lock, download=repository)
    assert broker.read_bytes() == b"broker"


def test_what_a_kill_left_in_the_cache_is_removed(tmp_path: Path, lock: Path, repository: Repository) -> None:
    left = tmp_path / "kafka" / "fetch-abc"
    left.mkdir(parents=True)
    fetch_jars(tmp_path, lock=lock, download=repository)
    assert not left.exists()


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path, lock: Path, repository: Repository) -> None:
    repository.content["org.slf4j:slf4j-api:1.7.36"] = b"something else"
    with pytest.raises(StackError, match=r"slf4j-api:1.7.36: expected sha256 .* find out why before going on"):
        fetch_jars(tmp_path, lock=lock, download=repository)
    assert not list(tmp_path.rglob("complete.json"))


def test_no_network_is_a_sentence_with_a_next_step(tmp_path: Path, lock: Path, repository: Repository) -> None:
    repository.broken = 99
    with pytest.raises(StackError, match=r"could not be fetched in 3 attempts .*connection reset.*run again"):
        fetch_jars(tmp_path, lock=lock, download=repository)


def test_progress_counts_up_to_all(tmp_path: Path, lock: Path, repository: Repository) -> None:
    seen: list[tuple[int, int]] = []
    fetch_jars(tmp_path, lock=lock, download=repository, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_a_line_that_is_no_pin_is_named(tmp_path: Path) -> None:
    path = tmp_path / "jars.lock"
    path.write_text("org.apache.kafka:kafka_2.13:4.4.0\n", encoding="utf-8")
    with pytest.raises(StackError, match="line 1: expected a sha256 and group:artifact:version"):
        read_lock(path)


def test_the_lock_of_this_repository_holds_what_jars_txt_wants() -> None:
    """And no second Kafka version: log4j's parent would bring one in."""
    locked = [jar.coordinate for jar in read_lock(kafka_files() / "jars.lock")]
    lines = (kafka_files() / "jars.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line.rstrip("!") for line in lines if line and not line.startswith("#")]
    assert set(wanted) <= set(locked)
    assert {name.split(":")[2] for name in locked if name.startswith("org.apache.kafka:")} == {"4.4.0"}


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TALLYMAN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "tallyman"


def test_a_marker_of_another_list_does_not_count(tmp_path: Path, lock: Path, repository: Repository) -> None:
    [broker, _] = fetch_jars(tmp_path, lock=lock, download=repository)
    marker = broker.parent / "complete.json"
    marker.write_text(json.dumps({"digest": "other", "sizes": {}}), encoding="utf-8")
    broker.unlink()
    fetch_jars(tmp_path, lock=lock, download=repository)
    assert broker.read_bytes() == b"broker"
