"""Every setting that says what sketches travel as reaches the wire."""

import numpy as np
import pytest
from datasets import Dataset

from gradalign import GradAlignError, Projection
from gradalign_trainer.adapters.verl.settings import VerlSettings
from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.curriculum.curriculum import ScorerAddress

PROBLEMS, DIM = 64, 4096
PROJECTION = Projection(dim=DIM, seed=0, parameters="ab" * 32)
IDS = [f"p{i}" for i in range(PROBLEMS)]


def by_trainer(url, run_id, dtype):
    config = TrainConfig(run_id=run_id, output="unused", scorer_url=url, sketch_dtype=dtype)
    return ScorerAddress(url=config.scorer_url, sketch_dtype=config.sketch_dtype).connect(run_id)


def by_trl(url, run_id, dtype):
    pytest.importorskip("trl", reason="comes with the extra trl")
    from gradalign_trainer.adapters.trl import GradAlignConfig

    trusted = Dataset.from_list([{"prompt": "1+1="}])
    config = GradAlignConfig(scorer_url=url, run_id=run_id, validation_dataset=trusted, sketch_dtype=dtype)
    return config.address(0).connect(run_id)


def by_verl(url, run_id, dtype):
    names = {"URL": url, "RUN_ID": run_id, "SKETCH_DTYPE": dtype}
    return VerlSettings.from_environment({f"GRADALIGN_VERL_{name}": value for name, value in names.items()}).connect()


def received(scorer):
    with scorer.http() as http:
        lines = http.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("gradalign_received_bytes_total "))


@pytest.mark.filterwarnings("ignore")  # what TRL warns of is its own
@pytest.mark.parametrize("connected", [by_trainer, by_trl, by_verl])
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("int8", 1)])
def test_it_is_sent_as_the_setting_says(scorer, run_id, connected, dtype, size):
    rows = np.random.default_rng(0).standard_normal((PROBLEMS, DIM)).astype(np.float32)
    with connected(scorer.url, run_id, dtype) as client:
        before = received(scorer)
        client.refresh_validation(IDS, rows, policy_version=0, projection=PROJECTION)
        header = received(scorer) - before - PROBLEMS * DIM * size
    assert 0 < header < 4096


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("connected", [by_trainer, by_trl, by_verl])
def test_another_one_is_refused_before_anything_is_sent(connected):
    with pytest.raises(GradAlignError, match=r"sketch_dtype.*expected one of float32, int8"):
        connected("http://127.0.0.1:9", "r", "int4")
