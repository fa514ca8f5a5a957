"""Sketches of a torch model's gradients: `pip install 'gradalign[sketch]'`."""

from gradalign.sketch.capture import Capture
from gradalign.sketch.coverage import Coverage
from gradalign.sketch.names import canonical_name
from gradalign.sketch.shards import LocalGradient
from gradalign.sketch.sketcher import Sketcher

__all__ = ["Capture", "Coverage", "LocalGradient", "Sketcher", "canonical_name"]
