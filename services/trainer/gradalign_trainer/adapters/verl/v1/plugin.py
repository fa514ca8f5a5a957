"""What verl loads in every process (entry-point group `verl.plugins`): adds our trainers once verl's own are imported.

verl loads plugins while it is half imported itself, and most of its processes never need a trainer. So nothing of verl is
imported here: a finder waits for the import of `verl.trainer.ppo.v1`, and registers behind it. Where verl is older and has
no such module, the finder waits for nothing. verl swallows what a plugin raises, so that a failure is logged here.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["AWAITED", "install", "register"]

AWAITED = "verl.trainer.ppo.v1"
logger = logging.getLogger(__name__)


class _Awaiting(MetaPathFinder):
    """Finds nothing but the awaited module, and that once: as the others would, with registering behind its import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname != AWAITED or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Behind(spec.loader)
        return spec


class _Behind(Loader):
    """Loads as another loader does, then registers."""

    def __init__(self, own: Loader) -> None:
        self._own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._own
        if module.__spec__ is not None:
            module.__spec__.loader = self._own
        self._own.exec_module(module)
        register()


def register() -> None:
    """Add our trainers to verl's registry; a failure is logged, and leaves verl as it was."""
    try:
        from gradalign_trainer.adapters.verl.v1 import trainer  # noqa: F401
    except Exception as error:
        logger.warning(
            "GradAlign's trainers are not added to verl (%s: %s); trainer.v1.trainer_mode knows verl's own alone. They are "
            "made for verl 0.9: see docs/adapters-verl.md.",
            type(error).__name__,
            error,
        )


def install() -> None:
    """Wait for verl's trainers; a second call changes nothing."""
    if AWAITED in sys.modules:
        register()
    elif not any(isinstance(finder, _Awaiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Awaiting())


install()
