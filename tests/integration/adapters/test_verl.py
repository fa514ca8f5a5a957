"""The verl adapter against the interface as released, with a real scorer; test_verl_real.py has verl itself."""

import logging
import os
import subprocess
import sys
from contextlib import ExitStack

import pytest
import torch
import verlkit
from verlkit import Actor, Batch, columns

from gradalign import Client
from gradalign.errors import GradAlignError
from gradalign.sketch import Sketcher
from gradalign_trainer.adapters.problemids import stable_id
from gradalign_trainer.adapters.verl.capture import ActorCapture
from gradalign_trainer.adapters.verl.problems import mark_problems
from gradalign_trainer.adapters.verl.settings import VerlSettings
from gradalign_trainer.worlds.tinymodel import byte_tokenizer, tiny_model

CHAT = [{"role": "user", "content": "2+3="}]


class Rows:
    """As verl's RLHFDataset."""

    def __init__(self, rows):
        self.dataframe = rows

    def __len__(self):
        return len(self.dataframe)


def row(number, source="sums", *, truth=None, **info):
    prompt = [{"role": "user", "content": f"{number}+1="}]
    truth = {"ground_truth": truth or str(number + 1), "style": "rule"}
    return {"data_source": source, "prompt": prompt, "reward_model": truth, "extra_info": info}


def pool(count, trusted=0):
    marked = [row(1000 + number, problem_id=f"t{number}", gradalign="trusted") for number in range(trusted)]
    return [row(number, problem_id=f"p{number}") for number in range(count)] + marked


def model():
    return tiny_model(byte_tokenizer(), seed=4, hidden=16, mlp=32, heads=2)


@pytest.fixture
def settings(monkeypatch, scorer, run_id):
    def give(**named):
        for name, value in {"url": scorer.url, "run_id": run_id, "dim": 256, **named}.items():
            monkeypatch.setenv(f"GRADALIGN_VERL_{name.upper()}", str(value))
        return VerlSettings.from_environment()

    return give


@pytest.fixture
def close():
    """Closes what it is given behind the test, and gives it back."""
    with ExitStack() as stack:

        def later(thing):
            stack.callback(thing.close)
            return thing

        yield later


@pytest.fixture
def make_sampler(monkeypatch, close):
    if not verlkit.REAL:
        verlkit.install_stand_in(monkeypatch)
        monkeypatch.delitem(sys.modules, "gradalign_trainer.adapters.verl.sampler", raising=False)
    from gradalign_trainer.adapters.verl.sampler import GradAlignSampler

    def make(rows, size):
        return close(GradAlignSampler(data_source=Rows(rows), data_config={"train_batch_size": size, "seed": 1}))

    return make


def test_ids_do_not_collide_where_verl_s_index_does():
    rows = Rows([row(1, index=0), row(1, "other", index=0), row(2), row(1, index=5), row(3, problem_id="given")])
    found = mark_problems(rows)
    assert list(found.pool.values()) == [[0, 3], [1], [2], [4]]  # rows 0 and 3 are one problem
    assert next(iter(found.pool)) == stable_id(rows.dataframe[0]["prompt"], "2", "sums")
    assert list(found.pool)[-1] == "given"
    assert rows.dataframe[1]["extra_info"] == {"index": 0, "problem_id": list(found.pool)[1]}


def test_a_hugging_face_dataset_is_marked_alike():
    datasets = pytest.importorskip("datasets", reason="comes with the extra huggingface")
    plain, table = Rows([row(1, index=0), row(2, index=0)]), Rows(None)
    table.dataframe = datasets.Dataset.from_list(plain.dataframe)
    assert mark_problems(table) == mark_problems(plain)
    assert [each["extra_info"]["problem_id"] for each in table.dataframe] == list(mark_problems(plain).pool)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row(1), row(1, gradalign="trusted")], "trusted in one row and candidates in another"),
        ([row(1, gradalign="trusted")], "expected candidates beside them"),
    ],
)
def test_what_cannot_be_validated_on_is_refused(rows, words):
    with pytest.raises(GradAlignError, match=words):
        mark_problems(Rows(rows))


def test_settings_name_what_is_missing_and_what_is_unknown():
    with pytest.raises(GradAlignError, match="GRADALIGN_VERL_URL, GRADALIGN_VERL_RUN_ID not set"):
        VerlSettings.from_environment({})
    with pytest.raises(GradAlignError, match="GRADALIGN_VERL_DIMM is set and means nothing"):
        VerlSettings.from_environment({"GRADALIGN_VERL_DIMM": "3"})
    with pytest.raises(GradAlignError, match="GRADALIGN_VERL_DIM = 'x'; expected a number"):
        VerlSettings.from_environment({"GRADALIGN_VERL_DIM": "x"})


def by_hand(sketcher, policy, batch, name):
    """The sketch of one problem, of rows one by one."""
    tensors, own = (
        batch.batch,
        [i for i, info in enumerate(batch.non_tensor_batch["extra_info"]) if info["problem_id"] == name],
    )
    policy.zero_grad()
    total = 0.0
    for place in own:
        length = int(tensors["response_mask"][place].sum())
        ids = tensors["input_ids"][place, : 4 + length]
        logp = torch.log_softmax(policy(ids[None]).logits[0, 3:-1].float(), -1)
        total = total - tensors["advantages"][place, 0] * logp[torch.arange(length), ids[4:]].sum()
    (total / tensors["response_mask"][own].sum()).backward()
    return sketcher.from_grads()


def test_the_capture_is_each_problem_s_own_gradient(settings, close):
    policy, problems = model(), [("b", False), ("a", True), ("c", False)]
    batch = Batch(*columns(problems, 5))
    capture = close(ActorCapture(Actor(policy), settings()))
    found = capture.measure(batch)
    assert (list(found.ids), list(found.trusted), list(found.rollouts)) == (
        ["a", "b", "c"],
        [True, False, False],
        [5] * 3,
    )
    assert all(parameter.grad is None for parameter in policy.parameters())
    expected = torch.stack([by_hand(Sketcher(policy, dim=256), policy, batch, name) for name in found.ids])
    torch.testing.assert_close(found.sketches, expected, rtol=1e-4, atol=1e-6)


def test_what_the_workers_send_is_what_the_sampler_draws_by(settings, scorer, run_id, make_sampler, close):
    named = settings(exploration=0, refresh_every=1, trusted_share=0.5)
    problems = [(f"p{number}", False) for number in range(6)]
    sampler = make_sampler(pool(6, trusted=2), 4)
    drawn = [sampler._queue.pop(0) if sampler._queue else next(iter(sampler)) for _ in range(1)]
    assert drawn[0] in (6, 7)  # trusted problems come first
    actor = Actor(model())
    capture = close(ActorCapture(actor, named))
    batch = Batch(*columns([*problems, ("t0", True), ("t1", True)], 4))
    before = batch.batch["advantages"].clone()
    capture(batch)
    assert torch.equal(batch.batch["advantages"][:24], before[:24])
    assert not batch.batch["advantages"][24:].any()  # nothing is trained on what is validated on
    with Client(scorer.url, run_id=run_id) as client:
        assert client.run().validation_problems == 2
        best = [each.problem_id for each in client.problems(limit=10).problems][:2]
    sampler.update(batch)
    sampler._queue.clear()
    rows = sampler._draw()
    assert [f"p{place}" for place in rows[2:]] == best
    capture(batch)
    with Client(scorer.url, run_id=run_id) as client:
        assert client.run().policy_version == 1


def test_the_plugin_s_wrapper_is_fail_open(settings, monkeypatch, caplog):
    settings(url="http://127.0.0.1:9", retries=0)
    for name in ("verl", "verl.workers", "verl.workers.actor", "verl.workers.actor.dp_actor"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))

    class Own(Actor):
        pass

    sys.modules["verl.workers.actor.dp_actor"].DataParallelPPOActor = Own
    from gradalign_trainer.adapters.verl import plugin

    plugin.install(Own)
    plugin.install(Own)
    actor, batch = Own(model()), Batch(*columns([("a", False), ("b", True)], 2))
    with caplog.at_level(logging.WARNING):
        assert actor.update_policy(batch) == {"actor/pg_loss": 0.0}
        assert "The scores of batch 1 are lost" in caplog.text
        assert len(actor.updated_with) == 1
        batch.non_tensor_batch["extra_info"][0] = {"index": 3}
        actor.update_policy(batch)
        actor.update_policy(batch)
    assert caplog.text.count("captures no more gradients") == 1
    assert "carry no extra_info.problem_id" in caplog.text
    assert len(actor.updated_with) == 3
    actor._gradalign["capture"].close()


def test_a_resumed_sampler_goes_on_and_puts_the_curriculum_back(settings, scorer, run_id, make_sampler, close):
    named = settings(exploration=0)
    batch = Batch(*columns([(f"p{number}", False) for number in range(4)] + [("t0", True)], 4))
    close(ActorCapture(Actor(model()), named))(batch)
    sampler = make_sampler(pool(12, trusted=1), 2)
    rows = iter(sampler)
    [next(rows) for _ in range(4)]
    state = sampler.state_dict()
    with Client(scorer.url, run_id=run_id) as client:
        kept = client.run().policy_version
        straight = [next(rows) for _ in range(4)]
        client.score(["p9"], torch.ones(1, 256), policy_version=40, projection=Sketcher(model(), dim=256).projection)
        resumed = make_sampler(pool(12, trusted=1), 2)
        resumed.load_state_dict(state)
        again = iter(resumed)
        assert [next(again) for _ in range(4)] == straight
        assert client.run().policy_version == kept
    assert len(list(again)) == len(resumed) - 8


def test_a_run_that_is_ahead_without_a_snapshot_is_said(settings, scorer, run_id, make_sampler, caplog):
    settings()
    with Client(scorer.url, run_id=run_id) as client:
        client.score(
            ["p1"],
            torch.ones(1, 256),
            policy_version=40,
            projection=Sketcher(model(), dim=256).projection,
            strategy="norm",
        )
    sampler = make_sampler(pool(8), 2)
    sampler.load_state_dict({"yielded": 2, "draws": 1, "queue": [], "version": 1, "fallbacks": 0, "snapshot": "verl-1"})
    with caplog.at_level(logging.WARNING):
        assert len(list(sampler)) == 6
    assert "snapshot verl-1 is gone" in caplog.text
    assert caplog.text.count("is ahead of this checkpoint (policy version 40, here 1)") == 1


def test_without_a_scorer_batches_are_random_and_counted(settings, make_sampler, caplog):
    settings(url="http://127.0.0.1:9", retries=0)
    sampler = make_sampler(pool(8), 4)
    with caplog.at_level(logging.WARNING):
        drawn = list(sampler)
    assert len(drawn) == len(sampler) == 8
    assert len(set(drawn[:4])) == 4
    assert sampler.fallbacks == 2
    assert "Batch 2 is random, 2 so far: the scorer is away" in caplog.text


def test_it_says_when_no_scores_arrive(settings, make_sampler, caplog):
    settings()
    sampler = make_sampler(pool(8), 4)
    batch = Batch(*columns([("p1", False), ("t0", True)], 2))
    with caplog.at_level(logging.WARNING):
        for _ in range(8):
            sampler.update(batch)
    assert sampler.version == 8
    assert "for 8 steps (the last batch had 2 problems, 1 of them trusted)" in caplog.text


SHARDED = """
import os, sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from verlkit import Actor, Batch, columns
from gradalign_trainer.adapters.verl.capture import ActorCapture
from gradalign_trainer.adapters.verl.settings import VerlSettings
from gradalign_trainer.worlds.tinymodel import byte_tokenizer, tiny_model

rank, world = int(sys.argv[1]), 2
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=world)
policy = tiny_model(byte_tokenizer(), seed=4, hidden=16, mlp=32, heads=2)
problems = [("a", True), ("b", False), ("c", False)]
tensors, others, meta = columns(problems, 5)
mesh = init_device_mesh("cpu", (world,))
for layer in policy.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(policy, mesh=mesh)
settings = VerlSettings(url="http://127.0.0.1:9", run_id="r", dim=256)
mine = [range(0, 9), range(9, 15)][rank]  # 'a' is whole on rank 0, 'b' on both, 'c' on rank 1
own = Batch({k: v[list(mine)] for k, v in tensors.items()}, {"extra_info": [others["extra_info"][i] for i in mine]}, meta)
found = ActorCapture(Actor(policy), settings).measure(own)
torch.save((list(found.ids), list(found.rollouts), found.sketches), sys.argv[2] + f".{rank}")
"""


def test_sharded_over_two_ranks_it_is_the_same_gradient(settings, close, tmp_path):
    policy = model()
    expected = close(ActorCapture(Actor(policy), settings())).measure(
        Batch(*columns([("a", True), ("b", False), ("c", False)], 5))
    )
    path = os.pathsep.join([os.path.dirname(verlkit.__file__), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", "-c", SHARDED]
    started = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet")], env={**os.environ, "PYTHONPATH": path})
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    for rank in range(2):
        ids, rollouts, sketches = torch.load(tmp_path / f"meet.{rank}")
        assert (ids, rollouts) == (["a", "b", "c"], [5, 5, 5])
        torch.testing.assert_close(sketches, expected.sketches, rtol=1e-4, atol=1e-6)
