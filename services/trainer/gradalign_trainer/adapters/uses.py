"""What a training uses the scorer for: the weights of its batches, the choice of its problems, or both."""

from __future__ import annotations

__all__ = ["Uses"]


class Uses:
    """For settings whose `use` is `weight`, `select` or `both`."""

    use: str

    @property
    def weighs(self) -> bool:
        """Whether advantages are multiplied by weights."""
        return self.use != "select"

    @property
    def selects(self) -> bool:
        """Whether the sampler asks which problems to take."""
        return self.use != "weight"
