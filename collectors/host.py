"""Measure this machine: CPU time by mode, memory, bytes through each network interface and each whole disk.

Numbers are the kernel's own integers. Interfaces and disks carry what makes them the same device in their
incarnation (interface index, disk sequence), so that one that was exchanged is never compared with the one before.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import msgspec

from collectors.intervals import Counter, Level, Sample

Part = Literal["cpu", "memory", "network", "disk"]
CpuMode = Literal["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"]

# /proc/stat, in the kernel's order (proc(5)); guest time is already in user and nice.
_MODES: tuple[CpuMode, ...] = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_SECTOR_BYTES = (
    512  # of /proc/diskstats, whatever the device's own sectors are (kernel, Documentation/admin-guide/iostats)
)
_MEMORY_DISKS = ("loop", "ram", "zram")


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator may set under `agent.collectors.host`.

    Attributes:
        measure: Which parts.
        cpu_modes: Time that was not used (idle, iowait) or taken away (steal) is not metered unless named here.
        interfaces, disks: Names or patterns such as "eth*".
        loopback: Whether traffic of the machine with itself counts.
    """

    measure: tuple[Part, ...] = ("cpu", "memory", "network", "disk")
    cpu_modes: tuple[CpuMode, ...] = ("user", "nice", "system", "irq", "softirq")
    interfaces: tuple[str, ...] = ("*",)
    disks: tuple[str, ...] = ("*",)
    loopback: bool = False


class HostCollector:
    """One reading takes some 0.3 ms."""

    name = "host"

    def __init__(
        self,
        options: Options,
        *,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
        read_interface_indexes: Callable[[], Mapping[str, int]] | None = None,
        ticks_per_second: int | None = None,
    ) -> None:
        self._options, self._proc, self._sys = options, proc, sys
        self._read_indexes = read_interface_indexes or _interface_indexes
        self._ticks, self._tick_scale = exact_ticks(ticks_per_second or os.sysconf("SC_CLK_TCK"))
        self._parts: dict[Part, Callable[[str], Iterator[Sample]]] = {
            "cpu": self._read_cpu,
            "memory": self._read_memory,
            "network": self._read_network,
            "disk": self._read_disks,
        }

    def read(self) -> list[Sample]:
        """Return every counter and level.

        Raises:
            OSError: A file of the kernel cannot be read.
            ValueError: It does not look as expected.
        """
        boot_id = (self._proc / "sys/kernel/random/boot_id").read_text().strip()
        return [sample for part in self._options.measure for sample in self._parts[part](boot_id)]

    def _read_cpu(self, boot_id: str) -> Iterator[Sample]:
        line = (self._proc / "stat").read_text().split("\n", 1)[0].split()
        if line[:1] != ["cpu"] or len(line) < 1 + len(_MODES):
            raise ValueError(f"{self._proc}/stat: expected a line of all CPUs first, got {line[:3]}")
        for mode, ticks in zip(_MODES, line[1:], strict=False):
            if mode in self._options.cpu_modes:
                value = int(ticks) * self._ticks
                yield Counter("tallyman.host.cpu", {"mode": mode}, value, self._tick_scale, boot_id)

    def _read_memory(self, boot_id: str) -> Iterator[Sample]:
        found = {}
        for line in (self._proc / "meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                found[name] = int(rest.split()[0]) * 1024
        if len(found) < 2:
            raise ValueError(f"{self._proc}/meminfo: expected MemTotal and MemAvailable, got {sorted(found)}")
        yield Level("tallyman.host.memory", {}, found["MemTotal"] - found["MemAvailable"])

    def _read_network(self, boot_id: str) -> Iterator[Sample]:
        indexes = self._read_indexes()
        for line in (self._proc / "net/dev").read_text().splitlines()[2:]:
            name, _, rest = line.partition(":")
            name, numbers = name.strip(), rest.split()
            if (name == "lo" and not self._options.loopback) or not _matches(name, self._options.interfaces):
                continue
            if name not in indexes:
                continue  # it went away between the two looks
            incarnation = f"{boot_id}/{indexes[name]}"
            for direction, number in (("in", numbers[0]), ("out", numbers[8])):
                data = {"interface": name, "direction": direction}
                yield Counter("tallyman.host.network", data, int(number), 0, incarnation)

    def _read_disks(self, boot_id: str) -> Iterator[Sample]:
        for line in (self._proc / "diskstats").read_text().splitlines():
            numbers = line.split()
            name = numbers[2]
            if not _matches(name, self._options.disks) or not self._is_whole_disk(name):
                continue
            incarnation = f"{boot_id}/{self._disk_sequence(name)}"
            for direction, sectors in (("read", numbers[5]), ("written", numbers[9])):
                data = {"device": name, "direction": direction}
                yield Counter("tallyman.host.disk", data, int(sectors) * _SECTOR_BYTES, 0, incarnation)

    def _is_whole_disk(self, name: str) -> bool:
        """Whether bytes are counted here first: no partition, no disk in memory, nothing stacked on other disks."""
        if name.rstrip("0123456789") in _MEMORY_DISKS:
            return False
        folder = self._sys / "block" / name.replace("/", "!")
        if not folder.is_dir():
            return False
        slaves = folder / "slaves"
        return not (slaves.is_dir() and any(slaves.iterdir()))

    def _disk_sequence(self, name: str) -> str:
        # Never given twice in one boot (Linux 5.15); before that, the device number has to do.
        folder = self._sys / "block" / name.replace("/", "!")
        for file in ("diskseq", "dev"):
            try:
                return (folder / file).read_text().strip()
            except FileNotFoundError:
                continue
        return name


def open_collector(options: Options) -> HostCollector:
    return HostCollector(options)


def exact_ticks(ticks_per_second: int) -> tuple[int, int]:
    """Return (integer per tick, scale) such that ticks become decimal seconds without a rest.

    >>> exact_ticks(100), exact_ticks(1024)
    ((1, 2), (9765625, 10))
    """
    for scale in range(19):
        if 10**scale % ticks_per_second == 0:
            return 10**scale // ticks_per_second, scale
    raise ValueError(f"SC_CLK_TCK: expected a number that divides a power of ten, got {ticks_per_second}")


def _interface_indexes() -> Mapping[str, int]:
    return {name: index for index, name in socket.if_nameindex()}


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
