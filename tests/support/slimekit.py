"""What the recipe for slime touches of slime: itself where its source is in PYTHONPATH, else stand-ins.

slime is on no package index. The stand-ins have the signatures of slime at 624b824: `RolloutDataSourceWithBuffer(args)` with
`dataset`, `sample_offset`, `metadata`, `get_samples(num_samples)`, `add_samples(samples)`, `save(rollout_id)` and
`load(rollout_id)`; `Sample`; and the part of `generate_rollout(args, rollout_id, data_source)` that calls the filter and
`process_func(args, all_samples, data_source.get_samples)`.
"""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import recipekit
import torch

REAL = recipekit.source_here("slime")


@dataclass
class Sample:
    prompt: str = ""
    label: str | None = None
    metadata: dict = field(default_factory=dict)
    index: int | None = None
    group_index: int | None = None
    reward: float | None = None

    def get_reward_value(self, args):
        return self.reward if not args.reward_key else self.reward[args.reward_key]


class Plain:
    """As `RolloutDataSource`."""

    def __init__(self, args):
        self.args, self.sample_offset, self.epoch_id, self.metadata = args, 0, 0, {}
        rows = [json.loads(line) for line in Path(args.prompt_data).read_text().splitlines()]
        samples = [Sample(prompt=row["text"], label=row["label"], metadata=row.get("metadata") or {}) for row in rows]
        self.dataset = SimpleNamespace(samples=samples)
        self.sample_index = self.sample_group_index = 0

    def get_samples(self, num_samples):
        rows = self.dataset.samples[self.sample_offset : self.sample_offset + num_samples]
        assert len(rows) == num_samples
        self.sample_offset += num_samples
        return [[copy.deepcopy(row) for _ in range(self.args.n_samples_per_prompt)] for row in rows]

    def _path(self, folder, rollout_id):
        return Path(folder) / f"rollout/global_dataset_state_dict_{rollout_id}.pt"

    def save(self, rollout_id):
        path = self._path(self.args.save, rollout_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"sample_offset": self.sample_offset, "metadata": self.metadata}, path)

    def load(self, rollout_id=None):
        if self.args.load is not None and self._path(self.args.load, rollout_id).exists():
            self.metadata = torch.load(self._path(self.args.load, rollout_id))["metadata"]


class Source(Plain):
    """As `RolloutDataSourceWithBuffer`."""

    def __init__(self, args):
        super().__init__(args)
        self.buffer = []

    def get_samples(self, num_samples):
        raise NotImplementedError

    def _get_samples_from_buffer(self, num_samples):
        taken, self.buffer = self.buffer[:num_samples], self.buffer[num_samples:]
        return taken

    def add_samples(self, samples):
        self.buffer += samples


def arguments(folder, questions):
    """slime's arguments, as far as the data source and the rollout read them."""
    data = folder / "prompts.jsonl"
    data.write_text("".join(json.dumps({"text": question, "label": "yes"}) + "\n" for question in questions))
    named = {
        "prompt_data": str(data), "input_key": "text", "label_key": "label", "metadata_key": "metadata", "tool_key": None,
        "rollout_global_dataset": True, "rollout_shuffle": False, "rollout_seed": 0, "rollout_max_prompt_len": None,
        "multimodal_keys": None, "apply_chat_template": False, "apply_chat_template_kwargs": None, "dump_details": None,
        "hf_checkpoint": "none", "buffer_filter_path": None, "n_samples_per_prompt": 8, "reward_key": None,
        "save": str(folder / "save"), "load": str(folder / "save"), "rollout_batch_size": 8, "over_sampling_batch_size": 8,
        "dynamic_sampling_filter_path": None, "rollout_sample_filter_path": None, "partial_rollout": False,
        "rollout_all_samples_process_path": "recipe_slime_source.report", "group_rm": False, "eval_reward_key": None,
        "custom_generate_function_path": "slimekit.generate", "mask_offpolicy_in_partial_rollout": False,
        "sglang_server_concurrency": 8, "rollout_num_gpus": 1, "rollout_num_gpus_per_engine": 1, "sglang_dp_size": 1,
        "rollout_temperature": 1.0, "rollout_top_p": 1.0, "rollout_top_k": -1, "rollout_max_response_len": 8,
        "rollout_stop": None, "rollout_stop_token_ids": None, "rollout_skip_special_tokens": True,
        "sglang_router_ip": "127.0.0.1", "sglang_router_port": 9, "rollout_sample_hook_path": None,
    }  # fmt: skip
    return SimpleNamespace(**named)


def install(monkeypatch):
    """Stand-ins where imports find them, if slime is not here; else no tokenizer is loaded, and no server is stopped."""
    if not REAL:
        recipekit.stand_in(monkeypatch, **{"slime.rollout.data_source": {"RolloutDataSourceWithBuffer": Source}})
        return
    from slime.rollout import data_source, sglang_rollout

    async def abort(args, rollout_id):
        return []

    for module in (data_source, sglang_rollout):
        monkeypatch.setattr(module, "load_tokenizer", lambda *_, **__: None)
        monkeypatch.setattr(module, "load_processor", lambda *_, **__: None)
    monkeypatch.setattr(sglang_rollout, "abort", abort)  # it asks SGLang's router


async def generate(args, sample, sampling_params):
    """What `--custom-generate-function-path` names: no text, and a reward as of the sample's place in its group."""
    sample.response, sample.response_length = "x", 1
    sample.status = type(sample).Status.COMPLETED
    sample.reward = recipekit.reward(sample.prompt, sample.index)
    return sample


def roll_out(args, rollout_id, source, process):
    """One rollout; the prompts whose groups it gave to the trainer."""
    if REAL:
        from slime.rollout.sglang_rollout import generate_rollout

        return [group[0].prompt for group in generate_rollout(args, rollout_id, source).samples]
    groups = source.get_samples(args.over_sampling_batch_size)
    for group in groups:
        for place, sample in enumerate(group):
            sample.reward = recipekit.reward(sample.prompt, place)
    process(args, groups, source.get_samples)
    return [group[0].prompt for group in groups]
