"""Captures of sharded models in real gloo processes: a test file runs itself once for each rank.

`run(__file__, world, tmp_path)` in the test, `main(CHECKS)` under `if __name__ == "__main__"`; a check takes
(rank, world, mesh). By hand, for one check: `python FILE RANK WORLD STORE NAME`, with this folder on PYTHONPATH.
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import transformers as tf

VOCABULARY, LENGTH, PROBLEMS = 23, 6, 5
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 22, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


def build(tied=False):
    torch.manual_seed(0)
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**SMALL, tie_word_embeddings=tied))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def shard(model, mesh, **options):
    from torch.distributed.fsdp import fully_shard

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


def run(file, world, folder):
    """Run a test file once for each rank; all its checks must pass on all."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    ranks = [
        subprocess.Popen(
            [sys.executable, file, str(rank), str(world), str(folder / "store")],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )
        for rank in range(world)
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=500)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(outputs)


def main(checks):
    """One rank: all checks, or those that the command line names."""
    from torch.distributed.device_mesh import init_device_mesh

    rank, world, store, only = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    for check in checks:
        if not only or check.__name__ in only:
            check(rank, world, mesh)
            print(rank, check.__name__, "holds", flush=True)
    dist.destroy_process_group()
