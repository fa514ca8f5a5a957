"""Products in verl 0.9's own FSDP2 engine, one rank and two, against gradients of the plain model."""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from verl09here import needs_verl

needs_verl()

pytestmark = pytest.mark.timeout(1200)  # of the processes that all tests read

from verl09ranks import ADVANTAGES, CASES, GROUP_TOKENS, LAST, LENGTHS, TOKENS  # noqa: E402

SUPPORT = Path(__file__).parents[2] / "support"
ALONE = ("packed", "padded", "dynamic", "offload", "lora")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What each rank of each case wrote, by case and number of ranks."""
    folder = tmp_path_factory.mktemp("verl09")
    path = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    run = [sys.executable, "-W", "ignore"]
    environment = {**os.environ, "PYTHONPATH": path, "VERL_USE_EXTERNAL_PLUGINS": "none"}
    save = f"import verl09kit; verl09kit.save_model({str(folder)!r})"
    subprocess.run([*run, "-c", save], env=environment, check=True, capture_output=True, timeout=300)
    for world, cases in ((1, ALONE), (2, tuple(CASES))):
        started = [
            subprocess.Popen(
                [*run, str(SUPPORT / "verl09ranks.py"), str(rank), str(world), str(folder), *cases],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(world)
        ]
        with ThreadPoolExecutor(world) as pool:
            said = [out for out, _ in pool.map(lambda process: process.communicate(timeout=1100), started)]
        assert not any(process.returncode for process in started), [out[-3000:] for out in said]

    def read(case, world):
        return [torch.load(folder / f"{case}.{world}.{rank}", weights_only=False) for rank in range(world)]

    return read


def exact():
    """|v| and the products of rows 0 to 9 by one backward a row."""
    from verl09kit import model

    policy = model().eval()

    def gradient(rows):
        policy.zero_grad()
        total = 0.0
        for row in rows:
            tokens = torch.tensor([TOKENS[row]])
            logp = torch.log_softmax(policy(tokens).logits[:, :-1].float(), -1).gather(-1, tokens[:, 1:, None])[0, :, 0]
            total = total - ADVANTAGES[row] * logp[-LENGTHS[row] :].sum() / GROUP_TOKENS[row]
        total.backward()
        return torch.cat([p.grad.flatten() for p in policy.parameters()]).double()

    v = gradient(range(4))
    return float(v.norm()), torch.stack([gradient([row]) @ v / v.norm() for row in range(LAST)])


def together(parts):
    """The products of all rows, in order."""
    values = torch.zeros(len(TOKENS), dtype=torch.float64)
    for part in parts:
        values[part["rows"]] = part["values"]
    return values


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("case", ["packed", "padded", "dynamic", "offload"])
def test_products_are_those_of_the_plain_model(seen, case, world):
    length, products = exact()
    found = seen(case, world)
    for part in found:
        assert (part["fault"], part["held"]) == ("", True)
        assert part["length"] == pytest.approx(length, rel=1e-5)
        assert part["quotient"] == pytest.approx(1.0, abs=0.02)
    values = together(found)
    # By differences, with steps of .02 nats a token.
    torch.testing.assert_close(values[:LAST], products, rtol=0.02, atol=2e-3 * length)
    assert not values[8:].any()  # without a signal, and rows that fill up whatever their advantages


@pytest.mark.parametrize("case", ["packed", "offload", "lora"])
def test_nothing_is_left_behind(seen, case):
    for part in seen(case, 2):
        assert part["same"]
        assert part["left"] == []
        assert not part["drew"]


def test_lora_s_own_parameters_are_what_moves(seen):
    one, two = seen("lora", 1), seen("lora", 2)
    assert all(part["fault"] == "" for part in (*one, *two))
    assert two[0]["length"] == pytest.approx(one[0]["length"], rel=1e-4)
    torch.testing.assert_close(together(two), together(one), rtol=0.02, atol=2e-3 * one[0]["length"])
    assert one[0]["quotient"] == pytest.approx(1.0, abs=0.05)


def test_the_next_update_is_what_it_would_have_been(seen):
    assert all(part["same"] for part in seen("next_update", 2))


def test_the_validation_gradient_is_held_behind_an_update(seen):
    for part in seen("later", 2):
        assert (part["fresh"]["held"], part["fresh"]["length"]) == (False, None)
        assert not part["fresh"]["values"].any()
        assert part["first"]["held"]
        assert (part["later"]["held"], part["later"]["length"], part["later"]["fault"]) == (True, None, "")
    first, later = (torch.cat([part[name]["values"] for part in seen("later", 2)]) for name in ("first", "later"))
    assert later[4:8].any()
    assert not torch.equal(first[4:8], later[4:8])


def test_log_probs_that_verl_has_spare_a_pass(seen):
    for part in seen("given", 2):
        assert (part["right"]["passes"], part["none"]["passes"]) == (1, 2)
        assert part["wrong"]["fault"] == ""
        scale = part["plain"]["length"]
        for name in ("right", "wrong"):
            torch.testing.assert_close(part[name]["values"], part["none"]["values"], rtol=0.05, atol=5e-3 * scale)


def test_in_16_bits_the_self_check_says_how_true_products_are(seen):
    length, products = exact()
    found = seen("bf16", 2)
    for part in found:
        assert part["fault"] == "" or part["fault"].startswith("DirectionError")
        if part["held"]:
            assert part["length"] == pytest.approx(length, rel=0.05)
            assert 0.5 < part["quotient"] < 2
            assert math.isfinite(part["fidelity"])
    if not any(part["fault"] for part in found):
        assert torch.corrcoef(torch.stack([together(found)[:LAST], products]))[0, 1] > 0.8


def test_what_cannot_be_measured_is_said_by_all_ranks_alike(seen):
    for part in seen("faults", 2):
        assert (part["nan"]["held"], part["nan"]["length"]) == (False, None)
        assert "an advantage is NaN or inf" in part["nan"]["fault"]
        assert "the columns advantages of the batch did not arrive in the worker" in part["missing"]
        assert (part["none"]["held"], part["none"]["fault"]) == (False, "")
        assert (part["right"]["held"], part["right"]["fault"]) == (True, "")


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("unsharded", "cannot say where its shards lie; set actor_rollout_ref.actor.strategy=fsdp2"),
        ("ulysses", "set actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=1"),
        ("float16", "set mixed_precision.param_dtype to bf16 or fp32"),
    ],
)
def test_engines_that_cannot_be_measured_are_refused_with_the_fix(seen, engine, words):
    assert all(words in part[engine] for part in seen("refused", 2))
