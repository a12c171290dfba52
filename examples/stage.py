"""Set the demo's stage: an empty folder, a copy of the small cloud's project, and the embedded stack in it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tallyman.local.stack import Stack, default_services
from tallyman.local.supervise import ChildEvent
from tallyman.local.updown import down
from tallyman.project import Project, load_project

CLOUD = Path(__file__).parent / "cloud"
PROJECT_PARTS = ("tallyman.yaml", "entity.yaml", "meters", "alarms", "plans", "accounts")
SERVICES = ("pipeline", "rules", "agent")


def demo_secrets() -> Sequence[str]:
    """Return the secrets with which the small cloud's webhooks are signed."""
    return load_project(CLOUD).config.rules.endpoints["operations"].secrets


def clear_folder(folder: Path) -> None:
    """Stop what an earlier run may have left running here, and empty the folder.

    Raises:
        StackError: Another process holds the folder and does not end.
    """
    if (folder / "data").exists():
        down(folder / "data")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def copy_project(folder: Path, receiver_port: int) -> Project:
    """Copy the small cloud's project and point its endpoint at the demo's receiver."""
    target = folder / "project"
    target.mkdir()
    for name in PROJECT_PARTS:
        source = CLOUD / name
        if source.is_dir():
            shutil.copytree(source, target / name)
        else:
            shutil.copy(source, target / name)
    settings = target / "tallyman.yaml"
    text = re.sub(r"http://127\.0\.0\.1:\d+/", f"http://127.0.0.1:{receiver_port}/", settings.read_text("utf-8"))
    settings.write_text(text, "utf-8")
    return load_project(target, folder / "data")


def make_stack(project: Project, on_event: Callable[[ChildEvent], None]) -> Stack:
    """Return Kafka, ClickHouse and our three services, not started yet, each as its own process."""
    services = default_services(project.folder, project.data, SERVICES)
    return Stack(project.data, services, on_event=on_event)


def start_generator(folder: Path, month: str, days: int | None) -> subprocess.Popen[str]:
    """Generate the month in a process of its own, while the stack starts."""
    command = [sys.executable, "-m", "examples.cloud.generate", "--month", month, "--out", str(folder / "month")]
    if days:
        command += ["--days", str(days)]
    root = Path(__file__).resolve().parents[1]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
