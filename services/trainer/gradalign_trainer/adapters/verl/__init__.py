"""GradAlign in verl 0.6 and 0.7: a curriculum sampler for the driver, and the capture of gradients in the workers.

    export VERL_USE_EXTERNAL_MODULES=gradalign_trainer.adapters.verl.plugin
    export GRADALIGN_VERL_URL=http://scorer:8000 GRADALIGN_VERL_RUN_ID=my-run
    python -m verl.trainer.main_ppo ... \
        data.sampler.class_path=pkg://gradalign_trainer.adapters.verl.sampler data.sampler.class_name=GradAlignSampler \
        data.dataloader_num_workers=0 actor_rollout_ref.actor.strategy=fsdp2

verl 0.8 took out the sampler's interface and the actor that is captured here. The room `v1` is for verl 0.9; see
docs/adapters-verl.md.

May import the curriculum and the sketch. A change here keeps verl's own update untouched.
"""
