"""Small models of the shapes that `costs` computes of, and counts of what torch does with them."""

import warnings

import torch
import transformers as tf
from costs import Job, Shape
from torch.utils.flop_counter import FlopCounterMode

SHAPE = Shape(
    layers=2, hidden=32, intermediate=72, heads=4, kv_heads=2, head_dim=8, vocabulary=192, bias=True, tied=False
)
JOB = Job(SHAPE, gpus=1, problems=4, rollouts=2, tokens=24, validation=2, at_once=8, dim=256)


def build(shape=SHAPE, seed=0):
    torch.manual_seed(seed)
    config = tf.Qwen2Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied, max_position_embeddings=64, attn_implementation="eager",
    )  # fmt: skip
    return tf.Qwen2ForCausalLM(config)


def with_lora(model, rank):
    """Adapters on all matrices of the layers, whose input takes a gradient as checkpointing needs it."""
    from peft import LoraConfig, get_peft_model

    model.enable_input_require_grads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for what it renames
        return get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear", lora_dropout=0.0))


def ids_of(job, seed=1):
    """The rows of one rank."""
    count = job.problems * job.rollouts // job.gpus
    return torch.randint(1, job.shape.vocabulary, (count, job.tokens), generator=torch.Generator().manual_seed(seed))


def logprobs_of(model, at_once):
    """A trainer's log-prob function, which runs so many rows at a time."""

    def logprobs(ids):
        found = []
        for part in ids.split(at_once):
            logits = model(input_ids=part, use_cache=False).logits[:, :-1].float()
            found.append(logits.log_softmax(-1).gather(2, part[:, 1:, None])[..., 0])
        return torch.cat(found)

    return logprobs


def flops(act):
    with FlopCounterMode(display=False) as counter:
        act()
    return counter.get_total_flops()
