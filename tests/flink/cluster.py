"""A Flink cluster of separate processes on loopback: a JobManager, TaskManagers, and the worker pool beside them.

The processes are started by their main classes, without Flink's shell scripts; those compute the memory settings that
stand here in full.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from tallyman.local.ports import answers, choose_port
from tallyman.local.supervise import Child, OneChild
from tests.flink.parts import HOST, SLOTS, java_child, python_env, write_conf

_SETTINGS: dict[str, object] = {
    "jobmanager.rpc.address": HOST,
    "jobmanager.bind-host": HOST,
    "taskmanager.host": HOST,
    "taskmanager.bind-host": HOST,
    "rest.address": HOST,
    "rest.bind-address": HOST,
    "taskmanager.numberOfTaskSlots": SLOTS,
    "cluster.evenly-spread-out-slots": "true",
    "heartbeat.interval": 1000,
    "heartbeat.timeout": 8000,
    "taskmanager.cpu.cores": 1,
    "taskmanager.memory.framework.heap.size": "64m",
    "taskmanager.memory.task.heap.size": "128m",
    "taskmanager.memory.framework.off-heap.size": "64m",
    "taskmanager.memory.task.off-heap.size": "32m",
    "taskmanager.memory.managed.size": "32m",
    "taskmanager.memory.network.min": "32m",
    "taskmanager.memory.network.max": "32m",
    "taskmanager.memory.jvm-metaspace.size": "128m",
    "taskmanager.memory.jvm-overhead.min": "64m",
    "taskmanager.memory.jvm-overhead.max": "64m",
}


class JobManager(OneChild):
    """The JobManager, with its REST server."""

    def __init__(self, folder: Path) -> None:
        self.rest = choose_port()
        rpc = choose_port(taken=(self.rest,))
        self.address = f"{HOST}:{self.rest}"
        self.settings = _SETTINGS | {"rest.port": self.rest, "jobmanager.rpc.port": rpc}
        conf = write_conf(folder / "conf", self.settings)
        main = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
        super().__init__(
            java_child("job-manager", folder, self.rest, main, "--configDir", str(conf), heap="256m"), folder / "run"
        )

    def ask(self, path: str) -> Any:
        """Ask the REST server, e.g. "/overview".

        Raises:
            OSError: It does not answer.
        """
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=10) as answer:
            return json.load(answer)

    def running_jobs(self) -> list[str]:
        return [job["id"] for job in self.ask("/jobs")["jobs"] if job["status"] == "RUNNING"]

    def checkpoints(self, job: str) -> int:
        """Return how many checkpoints of a job were completed."""
        completed: int = self.ask(f"/jobs/{job}/checkpoints")["counts"]["completed"]
        return completed


class TaskManager(OneChild):
    """One TaskManager; ready when the JobManager counts it."""

    def __init__(self, folder: Path, manager: JobManager, name: str) -> None:
        conf = write_conf(folder / "conf", manager.settings)
        port = choose_port()
        flags = ("--configDir", str(conf), f"-Dtaskmanager.resource-id={name}", f"-Dtaskmanager.rpc.port={port}")
        main = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
        super().__init__(java_child(name, folder, port, main, *flags, heap="256m"), folder / "run")


class WorkerPool(OneChild):
    """Beam's worker pool: it starts a Python worker whenever a TaskManager asks for one."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        port = choose_port()
        self.address = f"{HOST}:{port}"
        child = Child(
            name="worker-pool",
            argv=[sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"],
            env=python_env(),
            log=folder / "worker-pool.log",
            is_ready=lambda: answers(HOST, port),
        )
        super().__init__(child, folder / "run")

    def workers(self) -> list[psutil.Process]:
        """Return the Python workers that run now."""
        if self.pid is None:
            return []
        found = psutil.Process(self.pid).children(recursive=True)
        return [process for process in found if "SdkHarness" in " ".join(_command(process))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []
