"""A model that FSDP2 (fully_shard) shards: its parameters are DTensors, and plain and whole while a module computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from gradalign.errors import SketchError
from gradalign.sketch.parameters.names import canonical_name
from gradalign.sketch.parameters.shards import is_sharded

__all__ = ["Fsdp2"]


class Fsdp2:
    """Where such a model holds what is trained.

    Attributes:
        mesh: the device mesh that the shards are spread over.
    """

    def __init__(self, model: nn.Module, modules: list[Any], mesh: Any) -> None:
        self._modules = modules
        self.mesh = mesh
        self._places: list[tuple[str, nn.Module, str]] = []
        seen: set[int] = set()
        for prefix, module in model.named_modules():
            for leaf, parameter in module._parameters.items():
                if parameter is not None and parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    self._places.append((canonical_name(f"{prefix}.{leaf}" if prefix else leaf), module, leaf))

    @classmethod
    def of(cls, model: nn.Module) -> Fsdp2 | None:
        """What FSDP2 holds of a model; None if it holds nothing.

        Raises:
            SketchError: parameters are spread over different meshes.
        """
        modules: list[Any] = [m for m in model.modules() if _is_fsdp2(m)]
        meshes = _meshes(model)
        if modules and not meshes:  # a forward without a backward leaves the outermost module gathered
            for module in modules:
                module.reshard()
            meshes = _meshes(model)
        if not modules or not meshes:
            return None
        (first, mesh), *others = meshes.items()
        for name, other in others:
            if other != mesh:
                raise SketchError(
                    f"{name} is sharded over {other}, and {first} over {mesh}; capture adds sketches over the ranks of one "
                    "mesh. Shard the model over one, or sketch it problem by problem with from_grads()."
                )
        return cls(model, modules, mesh)

    def standing(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trained parameters by canonical name as they stand at the moment: whole, or DTensors."""
        for name, module, leaf in self._places:
            parameter = module._parameters.get(leaf)
            if parameter is not None:
                yield name, parameter

    def watch(self, look: Callable[[], None]) -> list[Any]:
        """Call `look` whenever a module has been gathered for its forward; the handles of the hooks."""
        # FSDP2's own hook was registered before, and so runs before.
        return [module.register_forward_pre_hook(lambda *_: look()) for module in self._modules]


def _is_fsdp2(module: nn.Module) -> bool:
    # Named rather than imported: torch.distributed costs a second to import where it is not in use.
    return any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)


def _meshes(model: nn.Module) -> dict[str, Any]:
    parameters: Any = model.named_parameters()
    return {canonical_name(name): p.device_mesh for name, p in parameters if is_sharded(p)}
