"""What a run computes on: memory that is kept, and the share of the CPU cores that a container leaves it.

Devices, precision and processes are tested where runs use them.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paperlib.runtime import parallel
from paperlib.runtime.device import cpu_quota

FAULTS = """
import resource, torch
from paperlib.runtime.device import tune_malloc
{tell}

def faults(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(2**20)  # 4 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(3)
print(faults(50))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep memory as they like")
def test_memory_that_is_kept_is_not_faulted_in_again() -> None:
    environment = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}  # a process that hands each of these tensors back
    default, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS.format(tell=tell)], env=environment, check=True,
                           capture_output=True, text=True).stdout)
        for tell in ("", "tune_malloc()")
    )  # fmt: skip
    assert kept < default / 10


V1 = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs - rw\n32 31 0:29 {top} /sys/fs/cgroup/cpu rw - cgroup - rw,cpuacct,cpu\n"
V2 = "31 23 0:28 {top} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup rw,nsdelegate\n"
V1_CPUSET = "34 31 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpuset\n"
DOCKER = "/docker/1a2b"


@pytest.mark.parametrize(
    ("group", "mounted", "files", "cores"),
    [
        ("0::/", V2.format(top="/"), {"cpu.max": "200000 100000"}, 2),
        ("0::/", V2.format(top="/"), {"cpu.max": "max 100000"}, math.inf),
        ("0::/", V2.format(top="/"), {"cpu.max": "50000 100000"}, 0.5),
        ("0::/a/b", V2.format(top="/"), {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1.5),
        ("0::/a/b", V2.format(top="/"), {"a/cpu.max": "300000 100000", "a/b/cpu.max": "200000 50000"}, 3),
        (f"0::{DOCKER}", V2.format(top=DOCKER), {"cpu.max": "100000 100000"}, 1),
        ("0::/../other", V2.format(top="/"), {"cpu.max": "100000 100000"}, 1),
        ("4:cpu,cpuacct:/", V1.format(top="/"), {"cpu/cpu.cfs_quota_us": "-1"}, math.inf),
        ("4:cpu,cpuacct:/x", V1.format(top="/"), {"cpu/x/cpu.cfs_quota_us": "400000"}, 4),
        (f"4:cpu,cpuacct:{DOCKER}\n0::/", V1.format(top=DOCKER), {"cpu/cpu.cfs_quota_us": "250000"}, 2.5),
        (f"4:cpu,cpuacct:{DOCKER}", V1.format(top="/other"), {"cpu/cpu.cfs_quota_us": "250000"}, 2.5),
        ("3:cpuset:/", V1_CPUSET, {"cpu/cpu.cfs_quota_us": "100000"}, math.inf),
        ("0::/", V2.format(top="/"), {}, math.inf),
    ],
)
def test_the_quota_of_a_container_is_read(
    tmp_path: Path, group: str, mounted: str, files: dict[str, str], cores: float
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{group}\n")
    (tmp_path / "proc/self/mountinfo").write_text(f"22 1 0:20 / / rw - ext4 /dev/sda1 rw\n{mounted}")
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
        if name.endswith("quota_us"):
            path.with_name("cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(tmp_path) == cores


def test_a_system_without_control_groups_sets_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) == math.inf


@pytest.mark.parametrize(("quota", "cores"), [(0.5, 1), (1.5, 2), (2.0, 2), (3.5, 4), (math.inf, 8)])
def test_processes_are_as_many_as_the_quota_allows(monkeypatch: pytest.MonkeyPatch, quota: float, cores: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(parallel, "cpu_quota", lambda: quota)
    assert parallel.cores() == cores
