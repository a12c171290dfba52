"""What the host collector reads from the kernel's files."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from collectors.host import HostCollector, Options, exact_ticks, open_collector
from collectors.intervals import Counter, Level, Sample

BOOT = "fdb697d9-324e-4f96-a6ff-0d7e4ac60aaa"
FILES = {
    "proc/sys/kernel/random/boot_id": f"{BOOT}\n",
    "proc/stat": "cpu  17540 3 4463 287593 684 0 199 2513 10 0\ncpu0 5855 0 1456 147761 80 0 67 1265 0 0\n",
    "proc/meminfo": "MemTotal:       16384 kB\nMemFree:         1000 kB\nMemAvailable:    4096 kB\n",
    "proc/net/dev": (
        "Inter-|   Receive                                                |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo\n"
        "    lo: 2221611   42572    0    0    0     0          0         0  2221611   42572    0    0    0\n"
        "  eth0:627338700   16231    0    0    0     0          0         0  1047808    9637    0    0    0\n"
        "veth1a: 18446744073709551615 1 0    0    0     0          0         0  7    9637    0    0    0\n"
    ),
    "proc/diskstats": (
        "   7       0 loop0 90 0 90 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
        " 254       0 vda 42835 7828 7213874 36823 10610 32959 4535520 15760 0 10408 53233 3932 77 1 529 1400 119\n"
        " 254       1 vda1 42835 7828 7213000 36823 10610 32959 4535000 15760 0 10408 53233 3932 77 1 529 1400 119\n"
        " 252       0 dm-0 42835 7828 7213000 36823 10610 32959 4535000 15760 0 10408 53233 3932 77 1 529 1400 119\n"
    ),
    "sys/block/loop0/diskseq": "1\n",
    "sys/block/vda/diskseq": "9\n",
    "sys/block/dm-0/diskseq": "11\n",
    "sys/block/dm-0/slaves/vda1/dev": "254:1\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


def read(root: Path, **options: object) -> list[Sample]:
    collector = HostCollector(
        Options(**options),  # type: ignore[arg-type]
        proc=root / "proc",
        sys=root / "sys",
        read_interface_indexes=lambda: {"lo": 1, "eth0": 4, "veth1a": 17},
        ticks_per_second=100,
    )
    return collector.read()


def values(samples: list[Sample]) -> dict[tuple[str, ...], int]:
    return {tuple(sample.data.values()): sample.value for sample in samples}


def test_cpu_time_is_read_by_mode_in_the_kernels_own_ticks(root: Path) -> None:
    samples = read(root, measure=("cpu",))
    assert values(samples) == {("user",): 17540, ("nice",): 3, ("system",): 4463, ("irq",): 0, ("softirq",): 199}
    assert {sample.scale for sample in samples if isinstance(sample, Counter)} == {2}


def test_time_that_was_not_used_is_metered_only_when_asked_for(root: Path) -> None:
    samples = read(root, measure=("cpu",), cpu_modes=("idle", "iowait", "steal"))
    assert values(samples) == {("idle",): 287593, ("iowait",): 684, ("steal",): 2513}


@pytest.mark.parametrize("ticks", [100, 250, 1000, 1024])
def test_ticks_become_decimal_seconds_without_a_rest(ticks: int) -> None:
    per_tick, scale = exact_ticks(ticks)
    assert per_tick * ticks == 10**scale


def test_memory_in_use_is_what_is_not_available(root: Path) -> None:
    assert read(root, measure=("memory",)) == [Level("tallyman.host.memory", {}, (16384 - 4096) * 1024)]


def test_interfaces_carry_their_index_as_incarnation_and_loopback_is_skipped(root: Path) -> None:
    samples = read(root, measure=("network",))
    assert values(samples) == {
        ("eth0", "in"): 627338700,
        ("eth0", "out"): 1047808,
        ("veth1a", "in"): 2**64 - 1,
        ("veth1a", "out"): 7,
    }
    assert next(sample.incarnation for sample in samples if isinstance(sample, Counter)) == f"{BOOT}/4"


def test_interfaces_can_be_chosen_by_pattern_and_loopback_by_option(root: Path) -> None:
    names = {sample.data["interface"] for sample in read(root, measure=("network",), interfaces=("eth*", "lo"))}
    assert names == {"eth0"}
    names = {sample.data["interface"] for sample in read(root, measure=("network",), loopback=True)}
    assert names == {"lo", "eth0", "veth1a"}


def test_bytes_of_a_disk_are_counted_once_whatever_lies_on_it(root: Path) -> None:
    """Neither its partition nor the volume on top of it, nor disks in memory."""
    samples = read(root, measure=("disk",))
    assert values(samples) == {("vda", "read"): 7213874 * 512, ("vda", "written"): 4535520 * 512}
    assert [sample.incarnation for sample in samples if isinstance(sample, Counter)] == [f"{BOOT}/9"] * 2


def test_a_file_of_another_shape_is_an_error_and_no_zero(root: Path) -> None:
    (root / "proc/meminfo").write_text("MemTotal: 16384 kB\n")
    with pytest.raises(ValueError, match="expected MemTotal and MemAvailable"):
        read(root, measure=("memory",))
    shutil.rmtree(root / "proc/net")
    with pytest.raises(OSError, match="net/dev"):
        read(root, measure=("network",))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads this very machine")
def test_this_machine_can_be_read_and_its_counters_only_grow() -> None:
    collector = open_collector(Options())
    before, after = collector.read(), collector.read()
    kinds = {"tallyman.host.cpu", "tallyman.host.memory"}
    assert kinds <= {sample.type for sample in before}
    earlier = {(sample.type, *sample.data.values()): sample.value for sample in before if isinstance(sample, Counter)}
    for sample in after:
        if isinstance(sample, Counter):
            assert sample.value >= earlier[(sample.type, *sample.data.values())]


def test_the_page_of_this_collector_names_every_option_and_event() -> None:
    page = (Path(__file__).parents[3] / "docs/collectors/host.md").read_text()
    types = {sample.type for sample in open_collector(Options(loopback=True)).read()}
    for name in (*Options.__struct_fields__, *types, *Options().cpu_modes):
        assert f"`{name}`" in page, name
