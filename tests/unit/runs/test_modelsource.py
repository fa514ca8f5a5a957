import torch
from transformers import AutoModelForCausalLM

from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.datasets import write_jsonl
from gradalign_trainer.grpo.models import load_policy
from gradalign_trainer.problems import Problem
from gradalign_trainer.runs.modelsource import model_source
from gradalign_trainer.worlds.supervised import IGNORED, padded_batch, save_once, train_supervised
from gradalign_trainer.worlds.tinymodel import byte_tokenizer, tiny_model


def config(tmp_path, **settings):
    return TrainConfig(**{"run_id": "r", "output": tmp_path / "out", "strategy": "random", "device": "cpu",
                          "model_cache": tmp_path / "cache", **settings})  # fmt: skip


def bytes_config(tmp_path, answer="yes", **settings):
    path = tmp_path / f"{answer}.jsonl"
    write_jsonl([Problem(f"p{i}", f"is {i} a number? ", answer) for i in range(5)], path)
    return config(tmp_path, model="tiny-bytes", warm_start=str(path), warm_start_steps=30, **settings)


def test_other_models_are_taken_as_they_are(tmp_path):
    assert model_source(config(tmp_path, model="some/model")) == "some/model"


def test_a_byte_model_learns_its_warm_start_and_is_made_once(tmp_path):
    told = []

    class Telling:
        def __init__(self, description, total):
            self.total = total

        def __enter__(self):
            return told.append

        def __exit__(self, *_):
            pass

    settings = bytes_config(tmp_path)
    folder = model_source(settings, progress=Telling)
    assert sum(told) == 30
    model, tokenizer = load_policy(folder, device=torch.device("cpu"))
    ids = tokenizer("is 3 a number? ", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == "y"
    assert model_source(settings, progress=Telling) == folder
    assert len(told) == 30
    assert model_source(bytes_config(tmp_path, answer="no")) != folder
    assert model_source(bytes_config(tmp_path, seed=1)) != folder


def test_a_byte_model_without_a_warm_start_is_fresh(tmp_path):
    folder = model_source(config(tmp_path, model="tiny-bytes", seed=4))
    fresh = tiny_model(byte_tokenizer(), seed=4)
    saved = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), saved.parameters(), strict=True))


def test_padded_batches_learn_from_completions_alone():
    ids, targets = padded_batch([([5, 6], [7]), ([8], [9, 10, 11])], pad=0)
    assert ids.tolist() == [[5, 6, 7, 0], [8, 9, 10, 11]]
    assert targets.tolist() == [[IGNORED, IGNORED, 7, IGNORED], [IGNORED, 9, 10, 11]]


def test_training_lowers_the_loss_and_leaves_evaluation_mode():
    model = tiny_model(byte_tokenizer(), seed=0)
    batch = padded_batch([([50, 51], [52, 1])] * 4, pad=0)

    def probability():
        with torch.no_grad():
            return float(model(batch[0]).logits[0, 1].softmax(-1)[52])

    before = probability()
    train_supervised(model, lambda: batch, steps=10, learning_rate=1e-2)
    assert probability() > 0.5 > before
    assert model.training is False


def test_a_folder_that_another_process_wrote_first_is_kept(tmp_path):
    tokenizer = byte_tokenizer()
    folder = tmp_path / "cache/model"
    first = tiny_model(tokenizer, seed=0)
    assert save_once(folder, first, tokenizer) == save_once(folder, tiny_model(tokenizer, seed=1), tokenizer) == folder
    kept = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), kept.parameters(), strict=True))
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_whoever_may_read_new_folders_may_read_a_model(tmp_path):
    (tmp_path / "new").mkdir()
    allowed = (tmp_path / "new").stat().st_mode
    tokenizer = byte_tokenizer()
    folder = save_once(tmp_path / "cache/model", tiny_model(tokenizer, seed=0), tokenizer)
    assert folder.stat().st_mode == allowed
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {allowed & 0o666}


def test_a_byte_model_has_the_size_asked_for(tmp_path):
    folder = model_source(bytes_config(tmp_path, width=32, layers=3))
    model, _ = load_policy(folder, device=torch.device("cpu"))
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.intermediate_size) == (32, 3, 96)
    assert model_source(bytes_config(tmp_path)) != folder
