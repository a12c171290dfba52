"""Beam's job server, with a whole Flink inside it or in front of a cluster; and that cluster's processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tallyman.local.jars import fetch_jars, files_of
from tallyman.local.java import find_java
from tallyman.local.ports import answers, choose_port
from tallyman.local.supervise import Child, OneChild, importable

HOST = "127.0.0.1"
SLOTS = 2
_SMALL_JVM = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xms64m")


def java_child(
    name: str, folder: Path, port: int, main: str, *arguments: str, heap: str, ready_within_s: float = 90
) -> Child:
    """Return a JVM with all of Flink and Beam on its class path, ready when somebody listens on `port`.

    Raises:
        StackError: If there is no Java, or a jar cannot be fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    class_path = os.pathsep.join(map(str, fetch_jars(part="flink")))
    settings = f"-Dlog4j2.configurationFile={files_of('flink') / 'log4j2.properties'}"
    argv = [str(find_java().path), f"-Xmx{heap}", *_SMALL_JVM, settings, "-cp", class_path, main, *arguments]
    return Child(
        name=name,
        argv=argv,
        log=folder / f"{name}.log",
        is_ready=lambda: answers(HOST, port),
        ready_within_s=ready_within_s,
        restart=None,
    )


class JobServer(OneChild):
    """Beam's job server for Flink.

    Args:
        master: "[local]" for a Flink inside the job server's own process, else the JobManager's "host:port".
    """

    def __init__(self, folder: Path, master: str = "[local]") -> None:
        self.folder = folder
        self.log = folder / "job-server.log"
        port = choose_port()
        self.endpoint = f"{HOST}:{port}"
        conf = write_conf(folder / "conf", {"taskmanager.numberOfTaskSlots": SLOTS})
        arguments = {
            "job-host": HOST,
            "job-port": port,
            "artifact-port": 0,
            "expansion-port": 0,
            "artifacts-dir": folder / "artifacts",
            "flink-master": master,
            "flink-conf-dir": conf,
        }
        child = java_child(
            "job-server",
            folder,
            port,
            "org.apache.beam.runners.flink.FlinkJobServerDriver",
            *(f"--{name}={value}" for name, value in arguments.items()),
            heap="512m",
        )
        super().__init__(child, folder / "run")


def write_conf(folder: Path, settings: Mapping[str, object]) -> Path:
    """Write Flink's configuration and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{name}: {value}\n" for name, value in settings.items()]
    (folder / "config.yaml").write_text("".join(lines), encoding="utf-8")
    return folder


def tallyman_argv(*arguments: str | Path) -> Sequence[str]:
    """Return the command line of tallyman, run by this very Python."""
    return [sys.executable, "-m", "tallyman", *map(str, arguments)]


def python_env() -> dict[str, str]:
    """Return an environment in which `python` is this one, and imports what this one can: worker pools need it."""
    return importable() | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
