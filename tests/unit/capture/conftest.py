"""The dtypes that models of these tests compute in."""

import pytest
import torch


@pytest.fixture
def _wide_casts(request, monkeypatch):
    """Norms cast to float32 inside models; equality in float64 needs them to stay there."""
    if "narrow" not in request.fixturenames:
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.fixture
def narrow():
    """Leave float32 as it is."""
