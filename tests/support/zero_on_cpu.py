"""Has accelerate train by DeepSpeed on the CPU, which it leaves to GPUs though gloo can do it. For tests' processes only."""

import importlib
import os

import accelerate.state
import transformers.training_args


def allow():
    """Call before an Accelerator is made, in a process that `accelerate launch` began with DeepSpeed."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    # It is compiled when it is first used, and is of use where all processes share one machine's memory.
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    made = accelerate.state.PartialState.__init__

    def found(self, *args, **kwargs):
        made(self, *args, **kwargs)
        accelerate.state.PartialState._shared_state.update(
            backend="gloo",
            num_processes=int(os.environ["WORLD_SIZE"]),
            process_index=int(os.environ["RANK"]),
            local_process_index=int(os.environ["LOCAL_RANK"]),
        )

    accelerate.state.PartialState.__init__ = found


def plain(model, prepare):
    """A copy of a model that DeepSpeed holds, which it knows nothing of; `prepare` does to it what a trainer does."""
    from deepspeed import zero

    copy = type(model)(model.config).train(model.training)
    prepare(copy)
    with zero.GatheredParameters(list(model.parameters())):
        copy.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
    for parameter in copy.parameters():
        # TRL asks it of any model while the training's is partitioned.
        parameter.ds_status = zero.partition_parameters.ZeroParamStatus.AVAILABLE
    return copy
