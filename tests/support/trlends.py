"""Where the TRL example ends: on one process, and on two by DDP and FSDP2, with the same rollouts.

    python tests/support/trlends.py --alignment capture --steps 40

TRL draws tokens on each process by its own random numbers. Here they belong to the row of the batch over all processes, so
that a token is another one only where rounding makes it so. Where it does, the run is told, and goes on with the rollouts
of the first one: after another token it would be another training. How far rounding alone leads says a run on one process
that takes the batch in two halves: it adds up the same gradients in another order, and differs in nothing else.
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
        given: what another one said, to go on with; or None.
        began: the weights at first, by name.
        said: the completions that each generation drew, of all processes, as token ids.
    """

    last = given = None

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
        self.said.append(gather_object(found[0]))
        rows = self.accelerator.process_index * len(found[0])
        taken = self.said if self.given is None else self.given
        return taken[len(self.said) - 1][rows : rows + len(found[0])], found[1]


def run(engine, output, given, arguments):
    """Run the example in this process, one of those of its engine; the first writes what it ended with."""
    Shared.given = torch.load(given)["said"] if given else None
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
    """What the example ended with by an engine: `weights`, how far they `moved`, `said`, `log`, and the line it `told`.

    All but `one` go on with the rollouts of `one`, which comes first.
    """
    output = Path(folder, f"{engine}.pt")
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if engine in ("ddp", "fsdp2") else []
    command = [sys.executable, *two, __file__, "--engine", engine, "--output", str(output), *arguments]
    if engine != "one":
        command += ["--given", str(Path(folder, "one.pt"))]
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
        `draws`: the share of rollouts that were drawn otherwise. `weights`: `distance` of the models' weights. And the
        largest difference of each figure in any update.
    """
    draws = [
        a != b
        for ours, theirs in zip(one["said"], other["said"], strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    found = {"draws": sum(draws) / len(draws), "weights": distance(one["weights"], other["weights"])}
    for name in ("reward", "grad_norm", "gradalign/alignment", "gradalign/weight"):
        logs = [[entry[name] for entry in each["log"] if name in entry] for each in (one, other)]
        found[name] = max(abs(a - b) for a, b in zip(*logs, strict=True))
    return found


def main():
    """Run the example by all engines, and print how far each ended from one process; or, with --engine, by that one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=ENGINES)
    parser.add_argument("--output")
    parser.add_argument("--given")
    options, arguments = parser.parse_known_args()
    if options.engine:
        run(options.engine, options.output, options.given, arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        one = ended("one", folder, arguments)
        print(json.dumps({"engine": "one", "moved": one["moved"], **one["told"]}), flush=True)
        for engine in ENGINES[1:]:
            other = ended(engine, folder, arguments)
            print(json.dumps({"engine": engine, "after": other["told"]["after"], **apart(one, other)}), flush=True)


if __name__ == "__main__":
    main()
