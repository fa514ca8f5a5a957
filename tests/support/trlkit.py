"""Runs of TRL's real GRPOTrainer with a curriculum, small enough for tests."""

import zlib
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import replace

import torch
import zero_on_cpu
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig
from trl.trainer.grpo_trainer import add_fused_lm_head

from gradalign_trainer.adapters.trl import GradAlignConfig, GradAlignGRPOTrainer
from gradalign_trainer.adapters.trl.measuring.groups import grouped
from gradalign_trainer.worlds.regimes import make_world

VALIDATION_REWARD = 1000.0
SMALL = {
    "per_device_train_batch_size": 16,
    "num_generations": 4,
    "max_completion_length": 4,
    "max_steps": 4,
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}


def rows(problems, part="pool", **more):
    return Dataset.from_list(
        [
            {"problem_id": p.problem_id, "prompt": p.prompt, "answer": p.answer, "part": part, **p.extra, **more}
            for p in problems
        ]
    )


def graded(completions, answer, part, **kwargs):
    """Differs wherever completions do, so that groups have a signal; far higher on validation problems, so that it shows."""
    marks = [zlib.crc32(f"{wanted} {said}".encode()) / 2**32 for said, wanted in zip(completions, answer, strict=True)]
    return [
        mark * (VALIDATION_REWARD if where == "validation" else 1.0) for mark, where in zip(marks, part, strict=True)
    ]


def make_trainer(base, output, url, run_id, *, kind=GradAlignGRPOTrainer, gradalign=None, pool=None, **settings):
    """A trainer; `reward_funcs`, `peft_config` and `callbacks` go to it, other settings to GRPOConfig."""
    world = make_world("inverted", seed=3, pool=96, validation=8, heldout=24)
    names = ("model", "reward_funcs", "peft_config", "callbacks")
    own = {name: settings.pop(name) for name in names if name in settings}
    config = {
        "validation_dataset": rows(world.validation, "validation"),
        "dim": 512,
        "refresh_every": 2,
        "timeout": 120.0,
        "retries": 0,
        **(gradalign or {}),
    }
    return kind(
        **{"model": own.pop("model", None) or AutoModelForCausalLM.from_pretrained(base)},
        processing_class=AutoTokenizer.from_pretrained(base, padding_side="left"),
        train_dataset=rows(world.pool) if pool is None else pool,
        args=GRPOConfig(output_dir=str(output), **{**SMALL, **settings}),
        gradalign=GradAlignConfig(scorer_url=url, run_id=run_id, **config),
        **{"reward_funcs": graded, **own},
    )


class Witness(GradAlignGRPOTrainer):
    """Holds the products of its batches to those of gradients of TRL's own loss, taken a row at a time.

    Attributes:
        compared: (ours, exact) of each measurement, float64 [rows over all processes], and last the two lengths.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.compared, self.against, self.trusted_groups = [], None, []

    def _met(self):
        met = super()._met()
        if self._meter is not None and not self.args.bf16:
            self._meter.target = 0.002  # as a difference it is nearer to the derivative
        return met

    def _validation_groups(self):
        seen = set()
        for groups in super()._validation_groups():
            weights = torch.zeros(len(groups.names))
            weights[groups.firsts(seen)] = 1.0  # what fills up a batch does not count
            if self.gradalign.aggregation == "mean":
                weights /= groups.tokens
            counted = {**groups.batch, "advantages": groups.batch["advantages"] * weights[groups.index]}
            self.trusted_groups.append(replace(groups, batch=counted))
            yield groups

    def _measured_validation(self, meter):
        self.trusted_groups = []
        measured = super()._measured_validation(meter)
        parts = [self.gradient(groups.batch, groups.batch["advantages"]) for groups in self.trusted_groups]
        self.against = [sum(each) for each in zip(*parts, strict=True)]
        mean = self.gradalign.aggregation == "mean"
        scale = 1.0 if mean else len(measured.problem_ids) / sum(measured.tokens)
        exact = torch.cat([self.exact(groups) for groups in self.trusted_groups]) * scale
        ours = flat(measured)
        self.compared.append((ours, exact[: len(ours)]))
        assert not exact[len(ours) :].any()
        length = self.dot(self.against, self.against) ** 0.5 * scale
        self.compared.append((torch.tensor([measured.length]), torch.tensor([length])))
        return measured

    def _score(self, ids, output, *, ready):
        if ready:
            groups = grouped(self, ids, output, self._rewards)
            before = [parameter.grad for parameter in self.model.parameters()]
            measured = self._meter.candidates(groups)
            assert all(p.grad is b for p, b in zip(self.model.parameters(), before, strict=True))
            tokens = groups.tokens.repeat_interleave(groups.size).double()
            self.compared.append((flat(measured), self.exact(groups) / tokens))
        super()._score(ids, output, ready=ready)

    def exact(self, groups):
        """Products of each row's gradient, not over any tokens, with the unit gradient of the validation rows."""
        length, found = self.dot(self.against, self.against) ** 0.5, []
        advantages = groups.batch["advantages"]
        for process in range(self.accelerator.num_processes):
            for row in range(len(advantages)):
                alone = torch.zeros_like(advantages)
                if process == self.accelerator.process_index:
                    alone[row] = advantages[row]
                found.append(self.dot(self.gradient(groups.batch, alone), self.against) / length)
        return torch.tensor(found, dtype=torch.float64)

    def gradient(self, output, advantages):
        """Of TRL's loss without its normalizer, added over the processes."""
        metrics = self._metrics["train"]
        self._metrics["train"] = defaultdict(list)
        model = zero_on_cpu.plain(self.model, self.fused) if self.is_deepspeed_enabled else self.model
        parameters = [p for p in model.parameters() if p.requires_grad]
        kept, processes = [p.grad for p in parameters], self.accelerator.num_processes
        try:
            for parameter in parameters:
                parameter.grad = None
            tokens = output["num_items_in_batch"] * self.current_gradient_accumulation_steps
            with self._meter._engine.aside() if self.is_fsdp_enabled else nullcontext():
                loss = self._compute_loss(model, {**output, "advantages": advantages})
                (loss * tokens / processes / self.args.steps_per_generation).backward()
                found = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            if self.is_fsdp_enabled:
                return [gradient * processes for gradient in found]
            for gradient in found if processes > 1 else ():
                torch.distributed.all_reduce(gradient)
            return found
        finally:
            self._metrics["train"] = metrics
            for parameter, gradient in zip(parameters, kept, strict=True):
                parameter.grad = gradient

    def fused(self, model):
        """As TRL has a model for its own log-probs."""
        add_fused_lm_head(model, temperature=self.temperature, outputs=("log_probs", "entropy"))

    @staticmethod
    def dot(one, other):
        sums = [(a.double() * b.double()).sum() for a, b in zip(one, other, strict=True)]
        return float(sum(s.full_tensor() if hasattr(s, "full_tensor") else s for s in sums))


class Unweighted(GradAlignGRPOTrainer):
    """Measures and scores, and trains on the advantages as they were."""

    def _score(self, ids, output, *, ready):
        own = output["advantages"].clone()
        super()._score(ids, output, ready=ready)
        assert ready
        output["advantages"] = own


class Blind(GradAlignGRPOTrainer):
    """Generates the same rollouts, and measures nothing."""

    def _measured_validation(self, meter):
        def consume(batches):
            list(batches)

        meter.validation = consume
        return super()._measured_validation(meter)


def flat(measured):
    return torch.tensor([value for group in measured.products for value in group], dtype=torch.float64)


def apart(pairs):
    """The largest distance of our products from exact ones, over the exact ones' norm."""
    return max(float((ours - exact).norm() / exact.norm()) for ours, exact in pairs)


KINDS = {"plain": GradAlignGRPOTrainer, "witness": Witness, "unweighted": Unweighted, "blind": Blind}
