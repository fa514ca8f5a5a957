"""Counts the bytes of the collectives that a rank takes part in, as they are called."""

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode


class Collectives(TorchDispatchMode):
    """Within the block: bytes that this rank receives of all-gathers, and sends for reductions in a ring.

    Attributes:
        gathered: of all-gathers.
        scattered: of reduce-scatters.
        added: of all-reduces.
    """

    def __init__(self):
        super().__init__()
        self.gathered = self.scattered = self.added = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kind, others = func._overloadpacket, (dist.get_world_size() - 1) / dist.get_world_size()
        if kind is torch.ops.c10d._allgather_base_:
            self.gathered += others * args[0].nbytes
        elif kind is torch.ops.c10d._reduce_scatter_base_:
            self.scattered += others * args[1].nbytes
        elif kind is torch.ops.c10d.allreduce_:
            self.added += 2 * others * sum(tensor.nbytes for tensor in args[0])
        return func(*args, **(kwargs or {}))
