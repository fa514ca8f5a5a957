"""GradAlign in verl 0.9: a plugin for its v1 trainers, which needs configuration alone.

    python -m verl.trainer.main_ppo ... trainer.v1.trainer_mode=gradalign_sync actor_rollout_ref.actor.strategy=fsdp2 \
        +gradalign.scorer_url=http://scorer:8000 +gradalign.run_id=my-run '+gradalign.trusted_sources=[trusted]'

verl loads `plugin` in every process by the entry-point group `verl.plugins`. The driver orders the dataset, talks to the
scorer and weighs advantages (`trainer`); the actor's workers take products in verl's engine (`worker`, `meter`).

May import forward products, the curriculum and the ids of verl's rows. A change here keeps: training is never stopped by us,
and the engine's next update is what it would have been.
"""
