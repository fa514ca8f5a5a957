"""Has accelerate shard by FSDP2 on the CPU, which it leaves to GPUs although gloo can do it. For processes of tests only."""

import os

import accelerate.state
from accelerate.utils import DistributedType

SETTINGS = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "Qwen2DecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "ACCELERATE_USE_CPU": "true",
}
"""What `accelerate launch --use_fsdp --fsdp_version 2` sets."""


def allow():
    """Call before an Accelerator is made."""
    os.environ.update(SETTINGS)
    made = accelerate.state.AcceleratorState.__init__

    def sharding(self, *args, **kwargs):
        made(self, *args, **kwargs)
        plugin = kwargs.get("fsdp_plugin")
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            accelerate.state.AcceleratorState._shared_state.update(
                distributed_type=DistributedType.FSDP, fsdp_plugin=plugin
            )
            accelerate.state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    accelerate.state.AcceleratorState.__init__ = sharding
