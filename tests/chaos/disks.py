"""Disks that are full when the run says so.

Where the kernel allows it, a file system of its own in memory, which is made as small as what lies on it: every write
gets a real ENOSPC. Elsewhere a limit on the size of files, set on the running processes from outside: they get EFBIG.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal, Protocol

Kind = Literal["mount", "limit"]
_ENTERED = "TALLYMAN_CHAOS_MOUNTS"  # set in the process that has mounts of its own
_SMALLEST_FILE = 4096  # bytes that every file may still have under a limit


class Disk(Protocol):
    """A disk of one folder."""

    def fill(self, *, but_for: int = 0) -> None:
        """Leave no room, or so many bytes where that can be had; may be called again while somebody deletes files."""
        ...

    def free(self) -> None: ...


class SmallDisk:
    """A file system of its own, in memory."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder, self._size = folder, size
        folder.mkdir(parents=True, exist_ok=True)
        self._mount(f"size={size},mode=700", "-t", "tmpfs", "tallyman")

    def fill(self, *, but_for: int = 0) -> None:
        now = os.statvfs(self._folder)
        self._resize((now.f_blocks - now.f_bfree) * now.f_frsize + but_for)

    def free(self) -> None:
        self._resize(self._size)

    def _resize(self, size: int) -> None:
        with suppress(subprocess.CalledProcessError):  # it grew meanwhile, and cannot be smaller than what is there
            self._mount(f"remount,size={max(size, 4096)}")

    def _mount(self, options: str, *arguments: str) -> None:
        subprocess.run(["mount", "-o", options, *arguments, str(self._folder)], check=True, capture_output=True)


class FileLimit:
    """No file of these processes may grow."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = pids

    def fill(self, *, but_for: int = 0) -> None:
        if not but_for:
            self._limit(_SMALLEST_FILE)

    def free(self) -> None:
        self._limit(resource.RLIM_INFINITY)

    def _limit(self, size: int) -> None:
        for pid in self._pids():
            with suppress(ProcessLookupError):
                _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, most))


def enter_own_mounts(module: str) -> Kind:
    """Start this command again in a name space of mounts, which ends with its last process: nothing can be left over.

    Returns:
        "mount" in that second life; "limit" where the kernel refuses.
    """
    if _ENTERED in os.environ:
        return "mount"
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", "--mount", *as_root]
    with tempfile.TemporaryDirectory() as folder:
        attempt = [*command, "mount", "-t", "tmpfs", "tallyman", folder]
        if shutil.which("unshare") is None or subprocess.run(attempt, capture_output=True, check=False).returncode:
            return "limit"
    sys.stdout.flush()
    return os.execvpe("unshare", [*command, sys.executable, "-m", module, *sys.argv[1:]], os.environ | {_ENTERED: "1"})
