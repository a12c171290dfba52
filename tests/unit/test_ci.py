"""What CI installs on a clean machine: the parts without which a test fails there."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("there", "installed"), [
    ((), {"kcat", "default-jdk-headless"}), (("kcat",), {"default-jdk-headless"}), (("kcat", "javac"), set()),
])  # fmt: skip
def test_other_clients_are_installed_where_they_are_missing(
    tmp_path: Path, there: tuple[str, ...], installed: set[str]
) -> None:
    """kcat, and a Java that compiles: the one that comes with Tallyman only runs Kafka."""
    for tool in ("bash", "dirname", "ls", "env"):
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / tool).symlink_to(found)
    tools = {"make": "", "id": "echo 0", "apt-get": 'echo "$@"'} | dict.fromkeys((*there, "initdb"), "")
    for tool, says in tools.items():
        (tmp_path / tool).write_text(f"#!{tmp_path / 'bash'}\n{says}\n", encoding="utf-8")
        (tmp_path / tool).chmod(0o755)
    done = subprocess.run(
        [ROOT / ".ci" / "run"], env=os.environ | {"PATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    words = {word for line in done.stdout.splitlines() if line.startswith("install") for word in line.split()[1:]}
    assert {word for word in words if not word.startswith("-")} == installed
