"""A test file that runs itself once for each rank of a gloo group: `python FILE WORLD STORE`.

Its test calls `run_ranks(__file__, ...)`, and it ends with `if __name__ == "__main__": main(CHECKS)`.
"""

import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes


def run_ranks(file, world, store, *, timeout):
    """Run a file as `world` processes that meet at the path `store`; all must end well within `timeout` seconds."""
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, file, str(world), str(store)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout


def main(checks):
    """Run all checks in each rank; ranks are forks, so that what a file imports is imported once."""
    world, store = int(sys.argv[1]), sys.argv[2]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name in ("torch.distributed.fsdp", "torch._dynamo"):  # which every rank would import by itself at its first use
        importlib.import_module(name)
    start_processes(_rank, (world, store, checks), nprocs=world, start_method="fork")


def _rank(rank, world, store, checks):
    """What each process does: `check(rank, world)` of all checks, in one group."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    for check in checks:
        check(rank, world)
    dist.destroy_process_group()
