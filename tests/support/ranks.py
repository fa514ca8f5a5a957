"""A test file that runs itself once for each rank of a gloo group: `python FILE RANK WORLD STORE`.

Its test calls `run_ranks(__file__, ...)`, and it ends with `if __name__ == "__main__": main(CHECKS)`.
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist


def run_ranks(file, world, store, *, timeout):
    """Run a file as `world` processes that meet at the path `store`; all must end well within `timeout` seconds."""
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    ranks = [
        subprocess.Popen(
            [sys.executable, file, str(rank), str(world), str(store)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )
        for rank in range(world)
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=timeout)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(outputs)


def main(checks):
    """What each process does: `check(rank, world)` of all checks, in one group."""
    rank, world, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    for check in checks:
        check(rank, world)
    dist.destroy_process_group()
