"""A whole run of verl 0.9 on the CPU: its configuration, registry, trainer, Ray workers, TransferQueue and FSDP2 engine.

    python verl09run.py FOLDER STEPS [verl's options]

`DROP=column` in the environment has agent loops lose a column. Stand-ins are three: what generates (random responses,
rewarded by their first token, in the place of vLLM or SGLang), what hands weights over to that, and the workers that compute
rewards. Prints a line of JSON for each step.
"""

import json
import os
import random
import sys

os.environ.setdefault("VERL_USE_EXTERNAL_MODULES", "verl09kit")  # the platform, in every process
os.environ.update(
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    RAY_DEDUP_LOGS="0",
    RAY_USAGE_STATS_ENABLED="0",
    TRANSFER_QUEUE_ENABLE="1",
)

import ray
import torch
import transfer_queue as tq
import verl09kit as kit
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import get_trainer_cls, trainer_base
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.rollout.replica import RolloutReplicaRegistry

ROLLOUTS = 4


def write_problems(folder, candidates=12, trusted=4):
    """Rows as verl's files have them; `index` is 0 in all of them, as where a file has none."""
    for name, numbers, source in (
        ("train", range(candidates), "sums"),
        ("trusted", range(100, 100 + trusted), "trusted"),
    ):
        rows = [
            {
                "data_source": source,
                "prompt": [{"role": "user", "content": f"{number}+1="}],
                "reward_model": {"ground_truth": str(number + 1), "style": "rule"},
                "extra_info": {"index": 0},
            }
            for number in numbers
        ]
        with open(f"{folder}/{name}.jsonl", "w") as file:
            file.write("\n".join(map(json.dumps, rows)))


def configuration(folder, steps, options):
    files = f"[{folder}/train.jsonl,{folder}/trusted.jsonl]"
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose(
            "ppo_trainer",
            [
                "trainer.v1.trainer_mode=gradalign_sync",
                f"actor_rollout_ref.model.path={folder}/model",
                "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
                "actor_rollout_ref.hybrid_engine=False",
                "actor_rollout_ref.actor.strategy=fsdp2",
                "actor_rollout_ref.actor.ppo_mini_batch_size=4",
                "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
                "actor_rollout_ref.actor.use_torch_compile=False",
                "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
                "+actor_rollout_ref.actor.fsdp_config.mixed_precision={param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}",
                "actor_rollout_ref.actor.optim.lr=1e-3",
                "actor_rollout_ref.rollout.name=vllm",
                "actor_rollout_ref.rollout.nnodes=1",
                "actor_rollout_ref.rollout.calculate_log_probs=False",
                f"actor_rollout_ref.rollout.n={ROLLOUTS}",
                "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
                "algorithm.adv_estimator=grpo",
                f"data.train_files={files}",
                f"data.val_files={folder}/trusted.jsonl",
                "data.train_batch_size=4",
                "data.filter_overlong_prompts=False",
                "data.seed=1",
                "trainer.n_gpus_per_node=2",
                "trainer.device=cpu",
                "trainer.logger=[]",
                f"trainer.default_local_dir={folder}/checkpoints",
                f"trainer.total_training_steps={steps}",
                "trainer.val_before_train=False",
                "trainer.test_freq=-1",
                "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
                *options,
            ],
        )
    OmegaConf.set_struct(config, True)
    config.transfer_queue.enable = True
    OmegaConf.resolve(config)
    return config


class Generating:
    """Writes what verl's agent loops write of a prompt's rollouts."""

    def __init__(self, tokenizer, drop=()):
        self.tokenizer, self.random, self.drop = tokenizer, random.Random(3), drop
        self.prompts = []

    def generate_sequences(self, prompts):
        for place in range(len(prompts)):
            row = {name: _plain(value, place) for name, value in prompts.items()}
            self.prompts.append(row["extra_info"]["problem_id"])
            outputs = [self._output(row) for _ in range(ROLLOUTS)]
            fields, tags = zip(*outputs, strict=True)
            keys = [f"{row['uid']}_{number}_0" for number in range(ROLLOUTS)]
            tq.kv_batch_put(keys=keys, partition_id="train", fields=list_of_dict_to_tensordict(fields), tags=tags)
            tq.kv_put(key=row["uid"], partition_id="train", tag={"status": "finished"})

    def _output(self, row):
        prompt = torch.tensor(self.tokenizer.encode(row["raw_prompt"][0]["content"]))
        response = torch.tensor([self.random.randrange(2, 250) for _ in range(self.random.randrange(2, 6))])
        mask, both = torch.ones_like(response), torch.cat([prompt, response])
        scores = torch.zeros(len(response))
        scores[-1] = float(response[0] % 2)
        field = {
            "prompts": prompt,
            "responses": response,
            "response_mask": mask,
            "loss_mask": mask,
            "input_ids": both,
            "position_ids": torch.arange(len(both)),
            "rm_scores": scores,
            "num_turns": 2,
            "multi_modal_inputs": {},
            **{name: value for name, value in row.items() if name not in ("dummy_tensor", *self.drop)},
        }
        lengths = {"prompt_len": len(prompt), "response_len": len(response), "seq_len": len(both)}
        step = row["global_steps"]
        return field, {
            "status": "success",
            "global_steps": step,
            "min_global_steps": step,
            "max_global_steps": step,
            **lengths,
        }


def _plain(value, place):
    if isinstance(value, torch.Tensor):
        return value[place]
    one = value[place] if type(value).__name__ == "NonTensorStack" else value
    return getattr(one, "data", one)


class NoRewardWorkers:
    reward_loop_worker_handles = ()

    def __init__(self, **named):
        pass


class NoHandingOver:
    def __init__(self, **named):
        pass

    def sleep_replicas(self):
        pass

    def update_weights(self, *steps):
        pass


def main(folder, steps, *options):
    RolloutReplicaRegistry.register("vllm", lambda: Generating)
    trainer_base.RewardLoopManager = NoRewardWorkers
    trainer_base.CheckpointEngineManager = NoHandingOver
    config = configuration(folder, steps, options)
    ray.init(num_cpus=16, num_gpus=2, include_dashboard=False)  # as many as verl asks for, whatever is there
    tq.init(config.transfer_queue)
    made = get_trainer_cls(config.trainer.v1.trainer_mode)

    class OnCpu(made):
        _enable_hybrid_replicas = False  # no rollout engine beside the actor

        def _compute_advantage(self, batch, metrics):
            batch = super()._compute_advantage(batch, metrics)
            fields = ["data_source", "advantages", "response_mask"]
            data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
            columns = (
                list(data["data_source"]),
                batch.tags,
                data["advantages"].unbind(),
                data["response_mask"].unbind(),
            )
            rows = [
                [source, bool(tag.get("is_padding")), float(advantages.abs().sum()), int(mask.sum())]
                for source, tag, advantages, mask in zip(*columns, strict=True)
            ]
            figures = {name: float(value) for name, value in metrics.items() if name.startswith("gradalign/")}
            print("STEP " + json.dumps({"rows": rows, "figures": figures}))
            return batch

    trainer = OnCpu(config)
    trainer.init()
    generating = Generating(kit.tokenizer(), drop=os.environ.get("DROP", "").split(","))
    trainer.fit(generating)
    print("DONE " + json.dumps({"prompts": generating.prompts, "steps": trainer.global_steps}))


if __name__ == "__main__":
    main(*sys.argv[1:])
