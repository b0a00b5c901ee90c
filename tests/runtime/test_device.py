"""What a run computes on: memory that is kept. Devices, precision and processes are tested where runs use them."""

import subprocess
import sys

import pytest

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
