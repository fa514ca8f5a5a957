"""Runs of TRL whose sketches are held to one backward a group, through a copy of the model in one piece."""

import copy

import torch
from accelerate.utils import gather_object
from peft import get_peft_model
from torch import nn

from gradalign.sketch import Sketcher
from gradalign_trainer.adapters.trl import GradAlignGRPOTrainer
from gradalign_trainer.adapters.trl.measuring.groups import counted, grouped


class Scaled(nn.Module):
    """A norm and a weight behind it, in an einsum, which capture does not take apart."""

    def __init__(self, norm, size):
        super().__init__()
        self.norm, self.scale = norm, nn.Parameter(torch.ones(size))

    def forward(self, values):
        return torch.einsum("btd,d->btd", self.norm(values), self.scale)


def scaled(model):
    """The model with such a norm at its end."""
    model.model.norm = Scaled(model.model.norm, model.config.hidden_size)
    return model


class SketchWitness(GradAlignGRPOTrainer):
    """Holds the sketches of its batches to those of the groups' own gradients.

    Attributes:
        compared: (ours, exact) of each batch, float32 [groups over all processes, dim].
    """

    def __init__(self, *args, model, **kwargs):
        self.twin, self.compared = copy.deepcopy(model), []
        if kwargs.get("peft_config"):
            self.twin = get_peft_model(self.twin, copy.deepcopy(kwargs["peft_config"]))
        super().__init__(*args, model=model, **kwargs)

    def _score(self, ids, output, *, ready):
        if ready:
            groups = grouped(self, ids, output, self._rewards)
            before = [parameter.grad for parameter in self.model.parameters()]
            ours = self._meter.candidates(groups).sketches
            assert all(p.grad is b for p, b in zip(self.model.parameters(), before, strict=True))
            self.compared.append((ours, self.exact(groups)))
        super()._score(ids, output, ready=ready)

    def exact(self, groups):
        """Of rows without padding, one at a time, through whole weights."""
        whole = {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in self.model.named_parameters()}
        with torch.no_grad():
            for name, parameter in self.twin.named_parameters():
                parameter.copy_(whole[name])
        sketcher = Sketcher(self.twin, dim=self.gradalign.dim, seed=self.gradalign.seed)
        rows, found = gather_object(self.rows(groups.batch)), []
        for group, tokens in enumerate(groups.tokens.tolist()):
            self.twin.zero_grad()
            for prompt, said, counts, advantage in rows[group * groups.size : (group + 1) * groups.size]:
                logits = self.twin(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1] / self.temperature
                logprobs = torch.log_softmax(logits, -1)[torch.arange(len(said)), said]
                (-advantage * (logprobs * torch.tensor(counts)).sum()).backward()
            found.append(sketcher.from_grads() / tokens)
        return torch.stack(found)

    def rows(self, batch):
        """Of each row of this process the prompt, the completion, which of its tokens count, and its advantage."""
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        parts = zip(*(batch[name].tolist() for name in names), counted(batch).tolist(), strict=True)
        advantages, found = batch["advantages"].tolist(), []
        for (prompt, asked, said, lived, counts), advantage in zip(parts, advantages, strict=True):
            own = [token for token, there in zip(prompt, asked, strict=True) if there]
            found.append((own, said[: sum(lived)], counts[: sum(lived)], advantage))
        return found
