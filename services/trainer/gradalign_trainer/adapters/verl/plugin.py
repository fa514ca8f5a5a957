"""What `VERL_USE_EXTERNAL_MODULES` names: imported, it has verl's actor sketch a batch's problems before the update."""

from __future__ import annotations

import functools
from typing import Any

from gradalign_trainer.adapters.verl.capture import captured_update

__all__ = ["install"]


def install(actor_class: Any) -> None:
    """Wrap the `update_policy` of an actor class; a second call changes nothing.

    Args:
        actor_class: verl's `DataParallelPPOActor`.
    """
    plain = actor_class.update_policy
    if getattr(plain, "captures", False):
        return

    @functools.wraps(plain)
    def update_policy(self: Any, data: Any) -> Any:
        captured_update(self, data)
        return plain(self, data)

    update_policy.captures = True  # type: ignore[attr-defined]
    actor_class.update_policy = update_policy


def _install() -> None:
    try:
        from verl.workers.actor.dp_actor import DataParallelPPOActor
    except ImportError as missing:
        raise ImportError(
            f"the capture needs verl 0.6 or 0.7, whose DataParallelPPOActor it wraps ({missing}); see docs/adapters-verl.md."
        ) from missing
    install(DataParallelPPOActor)


_install()
