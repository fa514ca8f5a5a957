"""Where vLLM is not installed, generation by it is refused before anything is made."""

from importlib.util import find_spec

import pytest

from gradalign import GradAlignError
from gradalign.cli import main
from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.runs.session import run_training

pytestmark = pytest.mark.skipif(
    find_spec("vllm") is not None, reason="vLLM is installed here; tests/unit/grpo/test_vllm_sampler.py looks at it"
)


def test_a_run_is_refused(tmp_path):
    config = TrainConfig(
        run_id="r", output=tmp_path / "out", model_cache=tmp_path / "cache", strategy="random", generation="vllm"
    )
    with pytest.raises(
        GradAlignError, match=r"needs the package vllm.*pip install 'gradalign\[vllm\]'.*'transformers'"
    ):
        run_training(config)
    assert list(tmp_path.iterdir()) == []


def test_a_grid_is_refused(tmp_path, capsys):
    assert main(["reproduce", "--generation", "vllm", "--output", str(tmp_path / "out")]) != 0
    assert "needs the package vllm" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
