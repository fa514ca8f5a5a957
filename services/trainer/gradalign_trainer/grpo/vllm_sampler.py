"""Sampling by vLLM, in this process and on the policy's own device.

The engine holds a second copy of the weights, which takes over the policy's before it samples if an update came between.
Its rollouts bring no log-probs: those of its kernels are not the policy's to the last bit, so what needs them takes them
from the policy. Tested with vLLM 0.32 on the CPU.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from gradalign.errors import GradAlignError
from gradalign_trainer.grpo.generation import RolloutBatch, Sampling, as_batch, encode_prompts, end_tokens, pad_token
from gradalign_trainer.grpo.models import bare

__all__ = ["VLLMSampler", "check_vllm", "policy_weights"]

SEEDS = 2**53
PROBE = 16  # tokens
NEAR = {torch.float32: 0.05, torch.bfloat16: 0.3}
"""How far log-probs of tokens by two kernels may be apart in the mean; right weights of SmolLM2 are .06
apart in bfloat16, one MLP of its thirty left out .5, and weights of no meaning 3."""


def check_vllm(device: torch.device) -> None:
    """Refuse generation by vLLM where it cannot be.

    Args:
        device: of the policy.

    Raises:
        GradAlignError: vLLM is not installed, or is built for other devices.
    """
    if find_spec("vllm") is None:
        raise GradAlignError(
            "generation = 'vllm' needs the package vllm, which is not installed here: pip install 'gradalign[vllm]', in an "
            "environment of its own, since it pins torch and transformers. Or set generation = 'transformers'."
        )
    from vllm.platforms import current_platform

    if current_platform.device_type != device.type:
        raise GradAlignError(
            f"generation = 'vllm' and model.device is {device.type!r}; the vLLM that is installed here runs on "
            f"{current_platform.device_type or 'none of the devices of this machine'!r}. Set model.device to that, install "
            "the build of vLLM for this device, or set generation = 'transformers'."
        )
    if device.index:
        raise GradAlignError(
            f"generation = 'vllm' and model.device is '{device}'; vLLM takes the first device that it sees. Set "
            f"model.device = '{device.type}' and CUDA_VISIBLE_DEVICES={device.index}."
        )


@dataclass(slots=True)
class _Engine:
    """A `vllm.LLM`, and whose weights it has."""

    llm: Any
    holder: object = None


class VLLMSampler:
    """Samples from a copy of the policy in an engine of vLLM; see `Sampler`.

    A seed gives the same rollouts again where vLLM computes the same: on the same device, with the same prompts in a call.

    Args:
        model: the policy; adapters are merged in the copy.
        tokenizer: its own.
        memory: share of the device's memory that the engine may take, for its weights and its KV cache.
        temperature: that will be sampled at; it is tried at once.

    Raises:
        GradAlignError: vLLM is not installed, is built for another device, or cannot serve the model so.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, memory: float, temperature: float
    ) -> None:
        check_vllm(model.device)
        self._model, self._tokenizer, self._memory = model, tokenizer, memory
        self._ends = end_tokens(model, tokenizer)
        self._weights = object()
        try:
            self._try(temperature)
        except (
            Exception
        ) as error:  # vLLM raises ValueError, RuntimeError, KeyError and others for models and for memory
            told = str(error).strip().partition("\n")[0]
            raise GradAlignError(
                f"vLLM cannot generate with this {type(bare(model)).__name__} at temperature = {temperature:g} and "
                f"vllm_memory = {memory:g}: {type(error).__name__}: {told}\nExpected a model and a temperature that it "
                "takes, and memory for its weights and a KV cache. Change these, or set generation = 'transformers'."
            ) from error

    def weights_changed(self) -> None:
        """As `Sampler`'s: the engine takes them over before it samples again."""
        self._weights = object()

    def generate(self, prompts: Sequence[str], sampling: Sampling, generator: torch.Generator) -> RolloutBatch:
        """As `Sampler`'s; without log-probs.

        Raises:
            GradAlignError: the longest prompt and its completion are more tokens than the engine takes.
        """
        ids, mask = encode_prompts(self._tokenizer, prompts, self._model.device)
        rows = [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]
        seeds = torch.randint(SEEDS, (len(rows),), generator=generator, device=generator.device).tolist()
        how = {"n": sampling.group_size, "max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
        said = [each for output in self._outputs(rows, seeds, **how) for each in sorted(output.outputs, key=_place)]
        completions = [torch.tensor(each.token_ids, device=ids.device) for each in said]
        tokens = pad_sequence(completions, batch_first=True, padding_value=pad_token(self._tokenizer, self._ends))
        completion_mask = pad_sequence([torch.ones_like(row) for row in completions], batch_first=True)
        return as_batch(self._tokenizer, sampling, (ids, mask), (tokens, completion_mask), None)

    @torch.no_grad()
    def _try(self, temperature: float) -> None:
        """Sample a token, and see that the prompt's log-probs are the policy's: that all weights came where they belong."""
        embeddings: Any = bare(self._model).get_input_embeddings()
        tokens = embeddings.num_embeddings
        row = [(2 * place + 1) * tokens // (2 * PROBE) for place in range(PROBE)]  # special ones stand at the ends
        told = self._outputs([row], [0], max_tokens=1, temperature=temperature, prompt_logprobs=0)[0].prompt_logprobs
        theirs = torch.tensor([each[token].logprob for token, each in zip(row[1:], told[1:], strict=True)])
        ids = torch.tensor([row], device=self._model.device)
        logprobs = torch.log_softmax(self._model(input_ids=ids).logits[0, :-1].float(), dim=-1)
        apart = float((logprobs.gather(1, ids[0, 1:, None])[:, 0].cpu() - theirs).abs().mean())
        if not apart <= NEAR[self._model.dtype]:
            raise ValueError(f"its log-probs of tokens are {apart:.3g} from the policy's own in the mean")

    def _outputs(self, rows: Sequence[list[int]], seeds: Sequence[int], **how: Any) -> Sequence[Any]:
        """What the engine says to prompts of token ids, at the policy's present weights."""
        from vllm import SamplingParams

        engine = self._engine_with_weights()
        longest, most = max(map(len, rows)) + how["max_tokens"], engine.llm.model_config.max_model_len
        if longest > most:
            raise GradAlignError(
                f"the longest prompt with max_new_tokens = {how['max_tokens']} is {longest} tokens; vLLM takes up to {most} "
                "of this model. Shorten the prompts, lower max_new_tokens, or raise vllm_memory."
            )
        engine.llm.reset_prefix_cache()  # of other weights; and a resumed run would begin without it
        ends = {"stop_token_ids": self._ends, "ignore_eos": True, "detokenize": False}
        prompts = [{"prompt_token_ids": row} for row in rows]
        outputs: Sequence[Any] = engine.llm.generate(
            prompts, [SamplingParams(**how, **ends, seed=seed) for seed in seeds], use_tqdm=False
        )
        return outputs

    def _engine_with_weights(self) -> _Engine:
        engine = _engine_of(self._model, self._memory)
        if engine.holder is not self._weights:
            engine.holder = None
            engine.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": policy_weights(self._model)})
            engine.holder = self._weights
        return engine


@torch.no_grad()
def policy_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The weights by the names of a checkpoint, a tied head too, adapters merged; the model itself stays as it is."""
    within = bare(model)
    for name, parameter in within.named_parameters(remove_duplicate=False):
        owner, _, leaf = name.rpartition(".")
        if ".lora_" in name:
            continue
        weight = parameter.detach()
        if owner.endswith(".base_layer"):
            owner = owner.removesuffix(".base_layer")
            layer: Any = within.get_submodule(owner)
            for adapter in layer.active_adapters if leaf == "weight" else ():
                weight = weight + layer.get_delta_weight(adapter).to(weight.dtype)
        yield f"{owner}.{leaf}", weight


_ENGINES: dict[tuple[str, torch.dtype, float], _Engine] = {}
"""The one of this process: it takes seconds to start and a share of the memory, so runs one after the other share it."""


def _engine_of(model: PreTrainedModel, memory: float) -> _Engine:
    """The engine for models like this one; that of others is ended first."""
    config = deepcopy(bare(model).config)
    config.name_or_path = ""  # a checkpoint's engine is that of the model it began with
    config.architectures = [type(bare(model)).__name__]
    config.tie_word_embeddings = False  # on CPUs vLLM packs a tied head once and for all
    key = (config.to_json_string(use_diff=False), model.dtype, memory)
    if key not in _ENGINES:
        _end_engines()
        _ENGINES[key] = _Engine(_started(config, model, memory))
    return _ENGINES[key]


def _started(config: PretrainedConfig, model: PreTrainedModel, memory: float) -> Any:
    """A `vllm.LLM` with weights of no meaning."""
    from vllm import LLM

    with tempfile.TemporaryDirectory() as folder, _vllm_environment():
        config.save_pretrained(folder)
        return LLM(
            model=folder,
            skip_tokenizer_init=True,
            load_format="dummy",
            generation_config="vllm",
            dtype=str(model.dtype).removeprefix("torch."),
            gpu_memory_utilization=memory,
            max_model_len=-1,
            enforce_eager=model.device.type == "cpu",  # it would compile for minutes there
        )


def _end_engines() -> None:
    if not _ENGINES:
        return
    from vllm.distributed import cleanup_dist_env_and_memory

    for engine in _ENGINES.values():
        engine.llm.llm_engine.engine_core.shutdown()
    _ENGINES.clear()
    cleanup_dist_env_and_memory()


@contextmanager
def _vllm_environment() -> Iterator[None]:
    """Let vLLM start no process for its engine, so that weights are handed over as they are, and log errors alone."""
    settings = {
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _place(completion: Any) -> int:
    """In its group."""
    return int(completion.index)
