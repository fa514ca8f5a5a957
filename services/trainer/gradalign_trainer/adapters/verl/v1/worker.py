"""verl's actor worker with one method more, which the driver calls between advantages and update."""

from __future__ import annotations

from typing import Any

import torch
from verl.single_controller.base.decorator import make_nd_compute_dataproto_dispatch_fn, register
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import ActorRolloutRefWorker

from gradalign.errors import GradAlignError
from gradalign_trainer.adapters.verl.v1.meter import EngineMeter, Products

__all__ = ["MEASURED", "OFFLOAD", "PRODUCTS", "MeasuringWorker"]

PRODUCTS, MEASURED, OFFLOAD = "gradalign_products", "gradalign_measured", "gradalign_offload"


class MeasuringWorker(ActorRolloutRefWorker):  # type: ignore[misc]
    """`ActorRolloutRefWorker` that takes products of rollouts; all else is verl's."""

    _meter: EngineMeter | None = None

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))  # type: ignore[untyped-decorator]
    def measure_alignment(self, data: Any) -> Any:
        """The products of this rank's rows.

        Args:
            data: as `update_actor` is given it, with the columns of `EngineMeter.measure`, and `OFFLOAD` beside them.

        Returns:
            A `TensorDict` with the column `PRODUCTS`, float64 [B], and beside it `MEASURED`: `length`, `held`, `figures` and
            `fault` of `Products`, and whether the fault is `lasting`: no other batch can be measured either.
        """
        lasting = False
        try:
            if self._meter is None:
                self._meter = EngineMeter(self.actor, offload=bool(tu.get(data, OFFLOAD, False)))
            found = self._meter.measure(data)
        except GradAlignError as error:  # on all ranks alike, before any of them waits for another
            found = Products(torch.zeros(len(data), dtype=torch.float64), None, False, {}, str(error))
            lasting = True
        said = {"length": found.length, "held": found.held, "figures": dict(found.figures)}
        return tu.get_tensordict(
            {PRODUCTS: found.values}, {MEASURED: {**said, "fault": found.fault, "lasting": lasting}}
        )
