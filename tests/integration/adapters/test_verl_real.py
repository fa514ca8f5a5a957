"""The adapter in verl's own classes: dataset, sampler factory, data loader and FSDP actor. Needs verl 0.6 or 0.7.

verl brings Ray, TensorDict and pinned versions of torch's surroundings, so it is not among the packages of `make test`.
docs/adapters-verl.md says how to run this file.
"""

import json
import os
import subprocess
import sys

import pytest

from gradalign import Client

pytest.importorskip(
    "verl.experimental.dataset.sampler",
    reason="verl 0.6 or 0.7 is not installed; see docs/adapters-verl.md",
    exc_type=ImportError,
)

SCRIPT = """
import json, sys
import torch, torch.distributed as dist
from omegaconf import OmegaConf
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import PreTrainedTokenizerFast

import verl  # the plugin wraps the actor here
from verl import DataProto
from verl.experimental.dataset.sampler import AbstractCurriculumSampler
from verl.trainer.main_ppo import create_rl_sampler
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn
from verl.workers.actor.dp_actor import DataParallelPPOActor
from verl.workers.config import FSDPActorConfig, OptimizerConfig

from gradalign_trainer.worlds.tinymodel import byte_tokenizer, tiny_model

folder = sys.argv[1]
tokenizer = byte_tokenizer()
tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
config = OmegaConf.create({
    "train_batch_size": 4, "shuffle": True, "seed": 1, "dataloader_num_workers": 0, "filter_overlong_prompts": False,
    "sampler": {"class_path": "pkg://gradalign_trainer.adapters.verl.sampler", "class_name": "GradAlignSampler"},
})
data = RLHFDataset(data_files=folder + "/train.jsonl", tokenizer=tokenizer, config=config)
sampler = create_rl_sampler(config, data)
assert isinstance(sampler, AbstractCurriculumSampler)
loader = StatefulDataLoader(data, batch_size=4, sampler=sampler, num_workers=0, drop_last=True, collate_fn=collate_fn)

dist.init_process_group("gloo", init_method="file://" + folder + "/meet", rank=0, world_size=1)
policy = tiny_model(tokenizer, seed=4, hidden=16, mlp=32, heads=2)
settings = FSDPActorConfig(
    strategy="fsdp2", ppo_mini_batch_size=16, ppo_micro_batch_size_per_gpu=4, rollout_n=4, use_torch_compile=False,
    ppo_epochs=1, optim=OptimizerConfig(lr=1e-3), use_remove_padding=False,
)
optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
actor = DataParallelPPOActor(config=settings, actor_module=policy, actor_optimizer=optimizer)

from verlkit import columns
seen, batches = [], iter(loader)
for step in range(3):
    rows = next(batches)
    infos = [info for info in rows["extra_info"] for _ in range(4)]
    tensors, _, meta = columns([(str(i), False) for i in range(4)], 4, seed=step)
    batch = DataProto.from_dict(tensors=tensors, non_tensors={"extra_info": infos}, meta_info=meta)
    weights = [p.detach().clone() for p in policy.parameters()]
    metrics = actor.update_policy(data=batch)
    assert "actor/pg_loss" in metrics
    assert any(not torch.equal(a, b) for a, b in zip(weights, policy.parameters()))
    sampler.update(batch)
    seen.append([info["problem_id"] for info in rows["extra_info"]])
state = loader.state_dict()
straight = [info["problem_id"] for info in next(batches)["extra_info"]]
again = create_rl_sampler(config, RLHFDataset(data_files=folder + "/train.jsonl", tokenizer=tokenizer, config=config))
resumed = StatefulDataLoader(again.data_source if hasattr(again, "data_source") else data, batch_size=4, sampler=again,
                             num_workers=0, drop_last=True, collate_fn=collate_fn)
resumed.load_state_dict(state)
print(json.dumps([seen, straight, [info["problem_id"] for info in next(iter(resumed))["extra_info"]], verl.__version__]))
"""


def test_verl_s_own_loader_and_actor(scorer, run_id, tmp_path):
    rows = [
        {
            "data_source": "sums",
            "prompt": [{"role": "user", "content": f"{number}+1="}],
            "reward_model": {"ground_truth": str(number + 1), "style": "rule"},
            "extra_info": {"index": 0, "gradalign": "trusted" if number >= 20 else ""},
        }
        for number in range(24)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    here = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([os.path.join(here, "support"), os.environ.get("PYTHONPATH", "")]),
        "VERL_USE_EXTERNAL_MODULES": "gradalign_trainer.adapters.verl.plugin",
        "GRADALIGN_VERL_URL": scorer.url,
        "GRADALIGN_VERL_RUN_ID": run_id,
        "GRADALIGN_VERL_REFRESH_EVERY": "2",
        "GRADALIGN_VERL_DIM": "256",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen, straight, again, _ = json.loads(done.stdout.splitlines()[-1])
    assert again == straight
    assert len({name for batch in seen for name in batch}) > 6
    with Client(scorer.url, run_id=run_id) as client:
        assert client.run().policy_version == 3  # of the draw behind the third update
        assert client.run().validation_problems == 1
        scored = {problem.problem_id for problem in client.problems(limit=100).problems}
    assert scored <= {name for batch in seen for name in batch}
    assert len(scored) >= 6
