"""The base of all adapters: what a training that another trainer runs has to do with its scorer.

`AdapterLink` is that base; `PassRateLink` is it for trainers that let us choose problems and no more, and `ProblemSampler`
its order for a data loader. docs/adapters-write.md shows how an adapter is made of them.

May import the curriculum. A change here keeps: training is never stopped by a scorer that is away.
"""

from gradalign_trainer.adapters.base.figures import batch_figures
from gradalign_trainer.adapters.base.link import AdapterLink, AdapterSettings
from gradalign_trainer.adapters.base.passrates import PassRateLink, PassRateSettings
from gradalign_trainer.adapters.base.sampler import ProblemSampler

__all__ = [
    "AdapterLink",
    "AdapterSettings",
    "PassRateLink",
    "PassRateSettings",
    "ProblemSampler",
    "batch_figures",
]
