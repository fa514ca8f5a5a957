"""LoRA: adapters alone take gradients, begin as nothing, and come back from a checkpoint."""

import pytest
import torch

from gradalign_trainer.grpo.models import load_policy
from gradalign_trainer.worlds.tinymodel import character_tokenizer, tiny_model

# peft reads an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
IDS = torch.tensor([[2, 3, 4, 3, 2]])


@pytest.fixture
def folder(tmp_path):
    tokenizer = character_tokenizer("abc")
    tiny_model(tokenizer, seed=0, hidden=32, mlp=48).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def loaded(source):
    return load_policy(source, device=torch.device("cpu"), lora_rank=4)


def test_adapters_change_nothing_at_first_and_alone_take_gradients(folder):
    (model, _), (plain, _) = loaded(folder), load_policy(folder, device=torch.device("cpu"))
    assert torch.equal(model(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    model(input_ids=IDS).logits.square().sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == trained


def test_adapters_of_one_model_begin_alike(folder):
    one, two = (dict(loaded(folder)[0].named_parameters()) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_checkpoint_of_adapters_is_loaded_whole_and_trained_on(folder, tmp_path):
    model, tokenizer = loaded(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    again, _ = loaded(tmp_path / "saved")
    assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
    trained = [name for name, parameter in again.named_parameters() if parameter.requires_grad]
    assert trained == [name for name, parameter in model.named_parameters() if parameter.requires_grad]
