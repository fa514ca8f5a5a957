"""GradAlign in TRL's GRPOTrainer, without a fork: `pip install 'gradalign[trl]'`. The guide is docs/adapters-trl.md.

    from gradalign_trainer.adapters.trl import GradAlignConfig, GradAlignGRPOTrainer
    trainer = GradAlignGRPOTrainer(..., gradalign=GradAlignConfig(
        scorer_url="http://127.0.0.1:8000", run_id="my-run", validation_dataset=trusted))
    trainer.train()

A GRPOTrainer subclass of one's own takes `class Mine(GradAlignMixin, MyTrainer)`.

May import its own room of measuring, the curriculum and the sketch. A change here keeps TRL's own course: the same
batches, losses and metrics.
"""

from gradalign_trainer.adapters.trl.config import GradAlignConfig
from gradalign_trainer.adapters.trl.trainer import GradAlignGRPOTrainer, GradAlignMixin

__all__ = ["GradAlignConfig", "GradAlignGRPOTrainer", "GradAlignMixin"]
