"""verl 0.9's own engine on the CPU, for processes of tests: a platform that verl lacks, a tiny model, and batches.

verl registers its FSDP engine for GPUs alone; told to look for that under the device `cuda`, it runs on the CPU by gloo.
Import this before anything of verl.
"""

import functools
import os
import types

os.environ.update(VERL_PLATFORM="cpu", VERL_ENGINE_DEVICE="cuda")
os.environ.update(RAY_raylet_start_wait_time_s="300")  # a busy machine is slow; Ray reads it when verl imports it

import torch
from tensordict import TensorDict
from verl.plugin.platform import PlatformRegistry
from verl.plugin.platform.platform_cuda import PlatformCUDA

from gradalign_trainer.worlds.tinymodel import byte_tokenizer, tiny_model


class Device:
    """torch.cpu, which counts no memory."""

    def get_device_name(self, index=0):
        return "CPU"

    def __getattr__(self, name):
        return getattr(torch.cpu, name, lambda *args, **named: (0, 0) if name == "mem_get_info" else 0)


@PlatformRegistry.register(platform="cpu")
class Cpu(PlatformCUDA):
    """What verl asks of a device, answered for the CPU."""

    device_name = property(lambda self: "cpu")
    vendor_name = property(lambda self: "cpu")
    device_module = property(lambda self: Device())

    def is_available(self):
        return True

    def is_platform_available(self, use_smi_check=False):
        return True

    def current_device(self):
        return "cpu"

    def device_count(self):
        return 1

    def set_device(self, index):
        pass

    def synchronize(self, index=None):
        pass

    def empty_cache(self):
        pass

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def communication_backend_name(self):
        return "gloo"


_init_process_group = torch.distributed.init_process_group


@functools.wraps(_init_process_group)
def _once(backend=None, **named):
    """verl's workers name a backend for the CPU and one for the device, which are the same here."""
    return _init_process_group(backend="gloo" if backend == "cpu:gloo,cpu:gloo" else backend, **named)


torch.distributed.init_process_group = _once

CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def tokenizer():
    made = byte_tokenizer()
    made.chat_template = CHAT_TEMPLATE
    return made


def model(seed=4):
    return tiny_model(byte_tokenizer(), seed=seed, hidden=16, mlp=32, heads=2)


def save_model(folder):
    model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def engine(folder, *, dtype="fp32", strategy="fsdp2", dynamic=False, micro=2, packed=True, lora=0, **named):
    """verl's engine of a saved model, and what stands for the worker around it."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine import EngineRegistry

    of_model = {"lora_rank": lora, "lora_alpha": 8, "target_modules": "all-linear"} if lora else {}
    model_config = HFModelConfig(
        path=str(folder),
        override_config={"attn_implementation": "sdpa"},
        enable_gradient_checkpointing=True,
        use_remove_padding=packed,
        **of_model,
    )
    config = FSDPEngineConfig(
        strategy=strategy,
        use_torch_compile=False,
        mixed_precision={"param_dtype": dtype, "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
        use_dynamic_bsz=dynamic,
        micro_batch_size_per_gpu=micro,
        infer_micro_batch_size_per_gpu=micro,
        max_token_len_per_gpu=32,
        infer_max_token_len_per_gpu=32,
        **named,
    )
    torch.manual_seed(0)  # LoRA's first matrices are drawn
    made = EngineRegistry.new(
        model_type="language_model",
        backend=strategy,
        model_config=model_config,
        engine_config=config,
        optimizer_config=FSDPOptimizerConfig(lr=1e-2, total_training_steps=10),
        checkpoint_config=CheckpointConfig(),
    )
    made.initialize()
    return types.SimpleNamespace(engine=made, engine_config=config, model_config=model_config)


def jagged(rows, dtype=torch.long):
    return torch.nested.as_nested_tensor([torch.as_tensor(row, dtype=dtype) for row in rows], layout=torch.jagged)


def batch(tokens, lengths, advantages, **columns):
    """A `TensorDict` as `update_actor` is given it: row i is `tokens[i]`, its last `lengths[i]` the response."""
    from verl.utils import tensordict_utils as tu

    masks = [[1] * length for length in lengths]
    data = TensorDict(
        {
            "input_ids": jagged(tokens),
            "position_ids": jagged([list(range(len(row))) for row in tokens]),
            "prompts": jagged([row[:-length] for row, length in zip(tokens, lengths, strict=True)]),
            "responses": jagged([row[-length:] for row, length in zip(tokens, lengths, strict=True)]),
            "response_mask": jagged(masks),
            "loss_mask": jagged(masks),
            "advantages": jagged(
                [[value] * length for value, length in zip(advantages, lengths, strict=True)], torch.float32
            ),
            **columns,
        },
        batch_size=[len(tokens)],
    )
    tu.assign_non_tensor(data, temperature=1.0)
    return data
