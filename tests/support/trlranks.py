"""Two processes of one TRL training on the CPU: DDP, FSDP2 or DeepSpeed. As a program: one of them, for torchrun."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import fsdp2_on_cpu
import torch
import trl
import zero_on_cpu
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trlkit import KINDS, apart, make_trainer
from trlsketches import SketchWitness, scaled


def started(base, output, url, run_id, kind, engine, **settings):
    """Two processes of a training, ended; of groups of four over six rows a process the middle one lies on both.

    Args:
        base: folder of the model.
        output: folder of the run.
        url: of the scorer.
        run_id: of the run.
        kind: of trainer, in `trlkit.KINDS`, or `sketched` for `trlsketches.SketchWitness`.
        engine: `ddp`, `fsdp2`, or as TRL's `zero1.yaml`, `zero2.yaml` or `zero3.yaml` launches it; with a setting
            `deepspeed`, as that configuration has it.
        settings: of `trlkit.make_trainer`; `resume` to go on from a checkpoint, `lora` for LoRA, `scaled` for a model that
            capture does not take apart, `silent` for a process all whose rewards are alike, `second` for settings of
            `gradalign` on the second process.
    """
    command, environment = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"], dict(os.environ)
    if "deepspeed" in settings:
        environment["ACCELERATE_USE_DEEPSPEED"] = "true"
    elif engine.startswith("zero"):
        shipped = Path(trl.__file__).parent / "accelerate_configs" / f"{engine}.yaml"
        command = ["accelerate.commands.launch", "--config_file", str(shipped), "--num_processes=2"]
        command += ["--mixed_precision", "bf16" if settings.get("bf16") else "no", "--main_process_port=0"]
    program = [__file__, str(base), str(output), url, run_id, kind, json.dumps(settings), engine]
    return subprocess.run(
        [sys.executable, "-m", *command, *program],
        env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip


def two_processes(base, output, *args, **settings):
    """What two processes of `started` ended with: digests `weights` and `moments`, `apart` of a witness, and `log`."""
    ran = started(base, output, *args, **settings)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [json.loads((Path(output) / f"rank-{rank}.json").read_text()) for rank in range(2)]


def alike(completions, **_):
    """No group has a signal."""
    return [0.5] * len(completions)


def digest(tensors):
    """Of the parts that this process holds."""
    found = hashlib.sha256()
    for tensor in tensors:
        own = getattr(tensor, "ds_tensor", getattr(tensor, "_local_tensor", tensor)).detach()
        found.update(own.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def moments(optimizer):
    """What an optimizer, wrapped or not, keeps of weights: masters and moments."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    for group in optimizer.param_groups:
        for weight in group["params"]:
            yield weight
            yield from (value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor))


def main():
    """`trlranks.py BASE OUTPUT URL RUN_ID KIND SETTINGS ENGINE`: trains, and writes what this process ended with."""
    base, output, url, run_id, kind, settings, engine = sys.argv[1:]
    torch.set_num_threads(1)
    settings = {"per_device_train_batch_size": 6, **json.loads(settings)}
    own = {name: settings.pop(name, None) for name in ("resume", "lora", "scaled", "silent", "second")}
    if own["silent"] == int(os.environ["RANK"]):
        settings["reward_funcs"] = alike
    if own["scaled"]:
        settings["model"] = scaled(AutoModelForCausalLM.from_pretrained(base))
    if own["second"] and os.environ["RANK"] == "1":
        settings["gradalign"] = {**settings.get("gradalign", {}), **own["second"]}
    if own["lora"]:
        settings["peft_config"] = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    if engine == "fsdp2":
        fsdp2_on_cpu.allow()
    if engine.startswith("zero"):
        zero_on_cpu.allow()
        settings["use_cpu"] = False
    trainer = make_trainer(base, output, url, run_id, kind={**KINDS, "sketched": SketchWitness}[kind], **settings)
    assert trainer.is_fsdp_enabled == (engine == "fsdp2")
    assert trainer.is_deepspeed_enabled == engine.startswith("zero")
    trainer.train(resume_from_checkpoint=own["resume"])
    ended = {
        "weights": digest(trainer.model.parameters()),
        "moments": digest(moments(trainer.optimizer)),
        "apart": apart(trainer.compared) if hasattr(trainer, "compared") else None,
        "log": trainer.state.log_history,
    }
    Path(output, f"rank-{trainer.accelerator.process_index}.json").write_text(json.dumps(ended))
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
