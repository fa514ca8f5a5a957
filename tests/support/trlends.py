"""Where the TRL example ends: on one process, and on two by DDP and FSDP2, with the same rollouts.

    python tests/support/trlends.py --alignment capture --steps 40

TRL draws tokens on each process by its own random numbers. Here they belong to the row of the batch over all processes, so
that a token is another one only where rounding makes it so. How far rounding alone leads says a run on one process that
takes the batch in two halves: it adds up the same gradients in another order, and differs in nothing else.
"""

import argparse
import functools
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import fsdp2_on_cpu
import torch
from accelerate.utils import gather_object
from transformers import LogitsProcessor
from trl import GRPOConfig

from gradalign_trainer.adapters.trl import GradAlignGRPOTrainer

EXAMPLE = Path(__file__).parents[2] / "services/trainer/examples/trl_arithmetic.py"
ENGINES = ("one", "halves", "ddp", "fsdp2")


class Draws(LogitsProcessor):
    """Makes the likeliest token a sample: Gumbel noise on the logits, of each row over all processes its own.

    Args:
        number: of the generation in its run.
        process: this one.
        processes: how many there are.
    """

    def __init__(self, number, process, processes):
        self.process, self.processes = process, processes
        self.generator = torch.Generator().manual_seed(number)

    def __call__(self, _ids, scores):
        rows, tokens = scores.shape
        uniform = torch.rand(rows * self.processes, tokens, dtype=torch.float64, generator=self.generator)
        gumbel = -(-uniform.clamp(min=1e-300).log()).log()
        return scores.double() + gumbel[self.process * rows : (self.process + 1) * rows]


class Shared(GradAlignGRPOTrainer):
    """Draws by `Draws`.

    Attributes:
        last: of these trainers.
        began: the weights at first, by name.
        said: of each generation the updates before it, and the completions of all processes as token ids.
    """

    last = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        Shared.last, self.said = self, []
        self.began = {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def _generate_single_turn(self, *args, **kwargs):
        model = self.accelerator.unwrap_model(self.model)
        draws = Draws(len(self.said), self.accelerator.process_index, self.accelerator.num_processes)
        self.generation_config.do_sample = False
        model.generate = functools.partial(type(model).generate, model, logits_processor=[draws])
        try:
            found = super()._generate_single_turn(*args, **kwargs)
        finally:
            del model.generate
        self.said.append((self.state.global_step, gather_object(found[0])))
        return found


def run(engine, output, arguments):
    """Run the example in this process, one of those of its engine; the first writes what it ended with."""
    spec = importlib.util.spec_from_file_location("trl_arithmetic", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    own = {"logging_steps": 1, "disable_tqdm": True}
    if engine == "halves":
        own |= {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 2}
    if engine == "fsdp2":
        fsdp2_on_cpu.allow()
    example.GradAlignGRPOTrainer = Shared
    example.GRPOConfig = lambda **given: GRPOConfig(**{**given, **own})
    sys.argv = [str(EXAMPLE), *arguments]
    example.main()
    trainer = Shared.last
    assert trainer.is_fsdp_enabled == (engine == "fsdp2")
    named = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    weights = {name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach() for name, p in named}
    if trainer.accelerator.is_main_process:
        said, log = trainer.said, trainer.state.log_history
        torch.save({"weights": weights, "moved": distance(weights, trainer.began), "said": said, "log": log}, output)
    trainer.accelerator.end_training()


def ended(engine, folder, arguments):
    """What the example ended with by an engine: `weights`, how far they `moved`, `said`, `log`, and the line it `told`."""
    output = Path(folder, f"{engine}.pt")
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if engine in ("ddp", "fsdp2") else []
    command = [sys.executable, *two, __file__, "--engine", engine, "--output", str(output), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return {**torch.load(output), "told": json.loads(ran.stdout.splitlines()[-1])}


def distance(one, other):
    """Of two models' weights, over the length of the first's."""
    squares = sum((p - other[name]).double().square().sum() for name, p in one.items())
    return float(squares / sum(p.double().square().sum() for p in one.values())) ** 0.5


def apart(one, other):
    """How far two runs ended from each other.

    Returns:
        `rollouts`: the share that are not the same token by token. `updates`: how many were made before the first of these.
        `weights`: `distance` of the models' weights at the end. And the largest difference of each figure in these updates.
    """
    pairs = [
        (step, a != b)
        for (step, ours), (_, theirs) in zip(one["said"], other["said"], strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    updates = min((step for step, differs in pairs if differs), default=one["told"]["steps"])
    found = {
        "rollouts": sum(differs for _, differs in pairs) / len(pairs),
        "updates": updates,
        "weights": distance(one["weights"], other["weights"]),
    }
    for name in ("reward", "grad_norm", "gradalign/alignment", "gradalign/weight"):
        logs = [[entry[name] for entry in each["log"] if name in entry][:updates] for each in (one, other)]
        found[name] = max((abs(a - b) for a, b in zip(*logs, strict=True)), default=0.0)
    return found


def main():
    """Run the example by all engines, and print how far each ended from one process; or, with --engine, by that one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=ENGINES)
    parser.add_argument("--output")
    options, arguments = parser.parse_known_args()
    if options.engine:
        run(options.engine, options.output, arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        one = ended("one", folder, arguments)
        print(json.dumps({"engine": "one", "moved": one["moved"], **one["told"]}), flush=True)
        for engine in ENGINES[1:]:
            other = ended(engine, folder, arguments)
            print(json.dumps({"engine": engine, "after": other["told"]["after"], **apart(one, other)}), flush=True)


if __name__ == "__main__":
    main()
