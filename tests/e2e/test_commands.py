"""The commands as typed: `gradalign train` and `gradalign demo`, each a process."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradalign import Client
from gradalign_trainer.config.files import load_config
from gradalign_trainer.demo.regimes import demo_config
from gradalign_trainer.reporting.tracking import read_metrics

CONFIGS = Path(__file__).parents[2] / "services/trainer/configs"
SMALL = [
    "rounds=1", "pool_size=16", "validation_problems=4", "validation_rollouts=8", "updates_per_round=1", "dim=256",
    "batch_problems=4", "evaluation=sampled", "data.reward=rewards_of_ours:graded",
]  # fmt: skip
REWARD = """
import zlib

def graded(problem, completion):  # differs wherever completions do: groups have a signal whatever the policy knows
    return zlib.crc32(f"{problem.problem_id} {completion}".encode()) / 2**32
"""


def gradalign(*arguments, cwd, timeout=500, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GRADALIGN_")}
    return subprocess.run(
        [sys.executable, "-m", "gradalign", *map(str, arguments)],
        check=False, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def sets(*assignments):
    return [part for assignment in assignments for part in ("--set", assignment)]


@pytest.mark.parametrize("regime", ["inverted", "imbalance"])
def test_the_demo_runs_what_its_files_say(regime):
    config = load_config(CONFIGS / f"demo-{regime}.toml")
    assert config == demo_config(regime, "cosine", config.output, run_id=config.run_id, scorer_url=config.scorer_url)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid(path):
    assert load_config(path).rounds > 0


@pytest.mark.slow
def test_a_trainer_that_is_killed_asks_before_it_goes_on_from_its_checkpoint(scorer, base, tmp_path, run_id):
    (tmp_path / "rewards_of_ours.py").write_text(REWARD)
    settings = sets(
        *SMALL, "rounds=200", "checkpoint_every=1", f"run_id={run_id}", f"output={tmp_path}/run",
        f"scorer.url={scorer.url}", f"model.path={base}",
    )  # fmt: skip
    command = ["train", CONFIGS / "demo-inverted.toml", *settings]
    process = subprocess.Popen(
        [sys.executable, "-m", "gradalign", *map(str, command)], cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 500
    metrics = tmp_path / "run/metrics.jsonl"
    while not (metrics.exists() and len(read_metrics(tmp_path / "run")) > 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    reached = len(read_metrics(tmp_path / "run")) - 1

    again = gradalign(*command, cwd=tmp_path)
    assert again.returncode == 2
    assert "holds" in again.stderr
    assert "--resume" in again.stderr
    assert "Traceback" not in again.stderr
    assert len(read_metrics(tmp_path / "run")) == reached + 1

    resumed = gradalign(*command, "--set", f"rounds={reached + 2}", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"held-out pass rate 0\.\d+ -> 0\.\d+; 0 rounds without the scorer", resumed.stdout)
    assert (tmp_path / f"run/checkpoints/round-{reached + 2:06d}/state.json").exists()
    lines = read_metrics(tmp_path / "run")
    assert [line["round"] for line in lines] == list(range(reached + 3))
    assert lines[-1]["fallbacks"] == 0
    with Client(scorer.url, run_id=run_id) as client:
        assert client.run().epoch == 2


def test_train_says_what_is_wrong_with_its_settings(tmp_path):
    found = gradalign("train", CONFIGS / "demo-inverted.toml", *sets("pol_size=8", "rounds=0"), cwd=tmp_path)
    assert found.returncode == 2
    assert "pol_size" in found.stderr
    assert "did you mean 'pool_size'" in found.stderr
    assert "rounds = 0" in found.stderr
    assert "Traceback" not in found.stderr


def test_settings_are_read_before_torch_is(tmp_path):
    code = (
        "import sys; from gradalign.cli import main\n"
        "sys.argv = ['gradalign', 'train', 'nowhere.toml']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "nowhere.toml" in found.stderr
    assert found.stdout.split() == ["False", "False"]


def demo(rounds, tmp_path):
    """The differences that `gradalign demo` prints, by regime, and all that it says."""
    found = gradalign("demo", "--rounds", rounds, cwd=tmp_path, timeout=1700, HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert found.returncode == 0, found.stderr
    differences = {}
    for line in found.stdout.splitlines():
        cells = [cell.strip() for cell in line.split("│")]
        if len(cells) == 7 and cells[1] in ("inverted", "imbalance") and cells[5].startswith(("+", "-")):
            differences[cells[1]] = float(cells[5])
    assert differences.keys() == {"inverted", "imbalance"}, found.stdout
    return differences, found


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_demo_beats_random_choice_in_both_regimes_and_shows_it(tmp_path):
    differences, found = demo(12, tmp_path)
    assert min(differences.values()) >= 0.15, found.stdout
    picture = tmp_path / "runs/demo/demo.png"
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture.stat().st_size > 10_000
    saw = found.stdout.partition("what the scorer saw")[2]
    assert all(kind in saw for kind in ("true rewards", "inverted rewards", "on target", "off target"))
    assert "round 12 of 12" in found.stderr  # progress where there is no terminal
    assert "WARNING" not in found.stderr
