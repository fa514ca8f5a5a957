"""Sketches of a torch model's gradients: `pip install 'gradalign[sketch]'`."""

from gradalign.sketch.coverage import Coverage
from gradalign.sketch.names import canonical_name
from gradalign.sketch.sketcher import Sketcher

__all__ = ["Coverage", "Sketcher", "canonical_name"]
