"""Models that FSDP2 shards over gloo processes, a batch of rows for each rank, and captures of them."""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY, LENGTH, PROBLEMS = 23, 6, 5
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 22, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


def build(tied=False):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=tied))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def shard(model, mesh, **options):
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


class Rows:
    """Two to four rows a rank, of problems that lie on several of them; `whole`: each on one."""

    def __init__(self, rank, world, whole=False):
        generator = torch.Generator().manual_seed(1)
        self.parts = []
        for each in range(world):
            count = 2 + each % 3
            ids = torch.randint(1, VOCABULARY, (count, LENGTH), generator=generator)
            weights = torch.randn(count, LENGTH - 1, generator=generator)
            index = torch.randint(-1, PROBLEMS, (count,), generator=generator)
            if whole:
                index = torch.where(index % world == each, index, -1)
            self.parts.append((ids, weights, index))
        self.ids, self.weights, self.index = self.parts[rank]
        self.all = [torch.cat(column) for column in zip(*self.parts, strict=True)]


def loss_of(model, ids, weights, _index=None):
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    return -(torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0] * weights).sum()


def captured(sketcher, model, ids, weights, index, **options):
    with sketcher.capture(index, problems=PROBLEMS, **options) as found:
        loss_of(model, ids, weights).backward()
    return found


def close(found, wanted, tolerance=1e-5):
    scale = float(wanted.abs().max())
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance * scale)


def mean_gradients(plain, rows):
    """What FSDP2 leaves: the mean over ranks of each rank's gradient."""
    plain.zero_grad()
    loss_of(plain, *rows.all).backward()
    return {name: p.grad / len(rows.parts) for name, p in plain.named_parameters() if p.grad is not None}


def on_mesh(checks):
    """The checks (rank, world, mesh) as `ranks.main` takes them, on a mesh of all ranks."""

    def run(rank, world):
        mesh = init_device_mesh("cpu", (world,))
        for check in checks:
            check(rank, world, mesh)
            print(rank, check.__name__, "holds", flush=True)

    return [run]
