"""Sketches of a torch model's gradients: `pip install 'gradalign[sketch]'`.

May import its rooms and the wire. A change here keeps the public names, the golden sketches and the laws in tests/property.
"""

from gradalign.sketch.capture.capture import Capture
from gradalign.sketch.parameters.coverage import Coverage
from gradalign.sketch.parameters.fsdp1 import fsdp1_local_grads
from gradalign.sketch.parameters.names import canonical_name
from gradalign.sketch.parameters.shards import LocalGradient
from gradalign.sketch.preconditioner import Preconditioner
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
