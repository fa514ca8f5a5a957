"""The verl adapter's capture in the actor's workers, with a real scorer, whole and sharded."""

import logging
import os
import subprocess
import sys

import torch
import verlkit
from verlkit import Actor, Batch, columns, model, pool

from gradalign import Client
from gradalign.sketch import Sketcher
from gradalign_trainer.adapters.verl.capture import ActorCapture


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
