"""The fused GPU kernel against the torch path: on a GPU, or on the CPU through triton's interpreter.

TRITON_INTERPRET=1 python -m pytest tests/unit/sketch/test_sketch_triton.py    # where triton is installed
"""

import os

import pytest
import torch
from torch import nn

from gradalign.sketch import Sketcher
from gradalign.sketch.capture import accumulate
from gradalign.sketch.hashing import matrix
from gradalign.sketch.kernels import cpu as compiled
from gradalign.sketch.kernels import gpu as fused
from gradalign.sketch.kernels.tables import HashTable

triton = pytest.importorskip("triton", reason="triton comes with the CUDA build of torch")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [pytest.mark.gpu]
if not INTERPRETED and not torch.cuda.is_available():
    pytestmark.append(pytest.mark.skip(reason="no CUDA device, and TRITON_INTERPRET is not 1"))
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def _on_the_cpu_too(monkeypatch):
    """The interpreter takes tensors of the CPU; send them the way that those of a GPU go."""
    if INTERPRETED:
        monkeypatch.setattr(compiled, "available", lambda: False)
        monkeypatch.setattr(
            fused, "available", lambda buckets, values: buckets.dtype == torch.float32 and values.dtype in fused._DTYPES
        )


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 37, 53), (3, 5, 1500), (2, 130, 8), (1, 4, 1024)])
@pytest.mark.parametrize("dim", [1, 64, 8192])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_torch_path(shape, dim, dtype):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    table = HashTable.of("w", shape[1:], dim=dim, seed=0, device=DEVICE, dtype=torch.float32)
    found, want = torch.ones(shape[0], dim, device=DEVICE), torch.ones(shape[0], dim, device=DEVICE)
    fused.add_matrices(found, values, table)
    for row, each in zip(want, values, strict=True):
        matrix._add_torch(row, each.float(), table)
    assert (found - want).norm() <= 1e-5 * want.norm()


def test_sketches_go_through_it(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 20), nn.Linear(20, 30), nn.LayerNorm(30)).to(DEVICE)
    ids, index = torch.arange(12, device=DEVICE).view(4, 3) % 9, torch.tensor([0, 1, 1, 0], device=DEVICE)
    sketcher = Sketcher(model, dim=128)
    monkeypatch.setattr(accumulate, "cheaper", lambda *_: False)

    def rows():
        model.zero_grad()
        with sketcher.capture(index) as captured:
            model(ids).square().sum().backward()
        return captured.sketches, sketcher.from_grads()

    through = rows()
    monkeypatch.setattr(fused, "available", lambda *_: False)
    for one, other in zip(through, rows(), strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()
    assert (through[0].sum(0) - through[1]).norm() <= 1e-5 * through[1].norm()
