"""Running one service: the signals that stop it, its metrics port, its exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from tallyman.cli import run
from tallyman.cli.services import stopped_by_signals

CALLS: list[tuple[Any, ...]] = []


def fake_main(project: Any, stop: threading.Event, metrics_port: int | None) -> int:
    CALLS.append((project.folder.name, stop.is_set(), metrics_port))
    return 7


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.delenv("TALLYMAN_METRICS_PORT", raising=False)
    (tmp_path / "tallyman.yaml").write_text("operator: Nimbus\n", encoding="utf-8")
    monkeypatch.setattr("tallyman.cli.services.load_room", lambda target: fake_main)
    CALLS.clear()
    return ["agent", "--project", str(tmp_path)]


def test_a_service_gets_its_project_and_gives_its_exit_code(service: list[str]) -> None:
    assert run(service) == 7
    assert CALLS[0][1:] == (False, None)


def test_a_service_has_one_heap_before_anything_begins_a_thread(
    service: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr("tallyman.memory.use_one_arena", lambda: done.append("one heap"))
    monkeypatch.setattr("tallyman.cli.services.load_room", lambda target: done.append(target) or fake_main)
    assert run(service) == 7
    assert done == ["one heap", "collectors.agent:main"]


def test_the_metrics_port_is_an_option_or_in_the_environment(
    service: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALLYMAN_METRICS_PORT", "9464")
    for options, port in (([], 9464), (["--metrics-port", "0"], 0)):
        assert run([*service, *options]) == 7
        assert CALLS[-1][2] == port


def test_a_metrics_port_that_is_none_is_wrong_usage(
    service: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TALLYMAN_METRICS_PORT", "http")
    assert run(service) == 2
    assert 'expected a port from 0 to 65535, got "http"' in capsys.readouterr().err


def test_a_signal_asks_and_a_second_one_does_not_wait() -> None:
    with stopped_by_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(5)


def test_sigterm_ends_a_service_with_its_own_exit_code(tmp_path: Path) -> None:
    (tmp_path / "tallyman.yaml").write_text("operator: Nimbus\n", encoding="utf-8")
    code = textwrap.dedent("""
        import sys, types
        room = types.ModuleType("collectors.agent")
        def main(project, stop, metrics_port):
            print("started", flush=True)
            return 5 if stop.wait(30) else 1
        room.main = main
        sys.modules["collectors.agent"] = room
        from tallyman.cli import main
        main(["agent"])
    """)
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 5


def test_the_pipeline_takes_a_clusters_options_and_hands_on_what_follows_the_dashes(
    service: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def room(target: str) -> Any:
        if target == "pipeline.portable:Portable":
            return dict
        assert target == "pipeline.submit:main"
        return lambda project, stop, metrics_port, **more: calls.append(more) or 7

    monkeypatch.setattr("tallyman.cli.services.load_room", room)
    where = ["--runner", "PortableRunner", "--job-endpoint", "flink-1:8099"]
    pool = ["--environment", "EXTERNAL", "--environment-config", "localhost:50000", "--flink-rest", "http://flink-1:8081"]
    assert run(["pipeline", *service[1:], *where, *pool, "--", "--parallelism=4", "--streaming"]) == 7
    assert calls[0]["portable"] == {
        "job_endpoint": "flink-1:8099",
        "environment": "EXTERNAL",
        "environment_config": "localhost:50000",
        "flink_rest": "http://flink-1:8081",
        "options": ("--parallelism=4", "--streaming"),
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--job-endpoint", "flink-1:8099"], "these options are a cluster's: add --runner PortableRunner"),
        (["--", "--parallelism=4"], "these options are a cluster's"),
        (["--runner", "PortableRunner"], "needs --job-endpoint, such as flink-1:8099"),
        (["--runner", "SparkRunner"], "'SparkRunner' is not one of"),
    ],
)
def test_a_cluster_is_asked_for_as_a_whole(
    service: list[str], arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["pipeline", *service[1:], *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not CALLS
