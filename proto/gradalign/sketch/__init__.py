"""Sketches of a torch model's gradients: `pip install 'gradalign[sketch]'`."""

from gradalign.sketch.capture import Capture
from gradalign.sketch.coverage import Coverage
from gradalign.sketch.fsdp1 import fsdp1_local_grads
from gradalign.sketch.names import canonical_name
from gradalign.sketch.preconditioner import Preconditioner
from gradalign.sketch.shards import LocalGradient
from gradalign.sketch.sketcher import Sketcher
from gradalign.sketch.totals import ExactSketch

__all__ = [
    "Capture",
    "Coverage",
    "ExactSketch",
    "LocalGradient",
    "Preconditioner",
    "Sketcher",
    "canonical_name",
    "fsdp1_local_grads",
]
