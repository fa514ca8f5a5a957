"""Alignment from forward passes alone: `pip install 'gradalign[sketch]'`.

May import the sketch and the errors. A change here keeps `Direction` as the face, and the
self-check that refuses to rank by noise.
"""

from gradalign.forward.check import Band, Check
from gradalign.forward.direction import Direction
from gradalign.forward.norms import head_norms
from gradalign.forward.parameters.shards import LocalParameter
from gradalign.forward.passes.batches import MicroBatch

__all__ = ["Band", "Check", "Direction", "LocalParameter", "MicroBatch", "head_norms"]
