"""`gradalign rank --exact` against a computation of our own: whole gradients by plain autograd, by the reference's rule."""

import json
import re
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from responsefiles import read_jsonl, responses, save_files, write_list
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from gradalign.cli import main

GROUPS, SAMPLES = 12, 6


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return save_files(tmp_path_factory.mktemp("rank"), GROUPS, SAMPLES)


class Oracle:
    """Right-padded batches, no masks but the causal one, the whole gradient as one vector."""

    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        ids = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        self.padding = next((token for token in ids if token is not None), None)

    def entries(self, records):
        rewards = {}
        for record in records:
            rewards.setdefault(record["group_id"], []).append(float(record["is_correct"]))
        found = []
        for record in records:
            mean = sum(rewards[record["group_id"]]) / len(rewards[record["group_id"]])
            prompt = self.tokenizer(record["prompt"])["input_ids"]
            ids = self.tokenizer(record["prompt"] + record["response"])["input_ids"]
            found.append((record["group_id"], ids, len(prompt), float(record["is_correct"]) - mean))
        return sorted(found, key=lambda entry: (entry[0], len(entry[1])))

    def token_mean(self, batch):
        total, tokens = 0.0, 0
        for _, ids, start, advantage in batch:
            logits = self.model(torch.tensor([ids])).logits[0].double()
            logp = torch.log_softmax(logits[:-1], -1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
            counted = torch.tensor([token != self.padding for token in ids[start:]])
            total = total - advantage * logp[start - 1 :][counted].sum()
            tokens += int(counted.sum())
        return total / tokens

    def gradient(self, entries, mini_batch, ranks=1, offset=0):
        self.model.zero_grad()
        for rank in range(ranks):
            own = [entry for place, entry in enumerate(entries, offset) if place % ranks == rank]
            for start in range(0, len(own), mini_batch):
                (8 * self.token_mean(own[start : start + mini_batch]) / ranks).backward()
        return torch.cat([parameter.grad.flatten().double() for parameter in self.model.parameters()])

    def similarities(self, train, val, mini_batch, ranks=1):
        unit = self.gradient(self.entries(val), mini_batch, ranks)
        unit = unit / (unit.norm() + 1e-5)
        found, offset = {}, 0
        entries = self.entries(train)
        for group in sorted({entry[0] for entry in entries}):
            own = [entry for entry in entries if entry[0] == group]
            if any(abs(entry[3]) >= 1e-6 for entry in own):
                gradient = self.gradient(own, mini_batch, ranks, offset)
                found[group] = float(gradient @ unit / (gradient.norm() + 1e-5))
            else:
                found[group] = 0.0
            offset += len(own)
        return found


def rank(files, scorer, out, *flags):
    named = {"model": files / "model", "train": files / "train.json", "validation": files / "val.json", "out": out}
    settings = [f"--{name}={value}" for name, value in {**named, "url": scorer.url}.items()]
    return main(["rank", *settings, "--device=cpu", "--dim=4096", *flags])


def ordered(similarities):
    return sorted(similarities, key=lambda group: (-similarities[group], group))


@pytest.mark.parametrize(("mini_batch", "ranks"), [(4, 1), (2, 3)])
def test_exact_is_the_reference_s_number_and_order(files, scorer, tmp_path, capsys, mini_batch, ranks):
    status = rank(
        files, scorer, tmp_path / "s.jsonl", "--exact", "--mini-batch", str(mini_batch), "--ranks", str(ranks)
    )
    assert status == 0
    found = {record["group_id"]: record["similarity"] for record in read_jsonl(tmp_path / "s.jsonl")}
    train, val = responses(GROUPS, SAMPLES, seed=3), responses(4, SAMPLES, seed=8)
    expected = Oracle(files / "model").similarities(train, val, mini_batch, ranks)
    assert list(found) == sorted(expected)
    assert np.std(list(expected.values())) > 0.02  # or agreement would mean nothing
    assert found == pytest.approx(expected, abs=1e-5)
    wanted = [expected[group] for group in ordered(found)]
    assert all(better >= worse - 2e-5 for better, worse in pairwise(wanted))  # each of them may be off by 1e-5
    printed = float(re.search(r"Spearman .* (\d\.\d+)", capsys.readouterr().out)[1])
    assert 0.9 < printed <= 1


def test_the_reference_s_rule_depends_on_its_batches_and_ours_does_not(files, scorer, tmp_path):
    def found(name, *flags):
        assert rank(files, scorer, tmp_path / name, "--exact", *flags) == 0
        return np.array([record["similarity"] for record in read_jsonl(tmp_path / name)])

    by_group = ("--normalization", "group", "--rows-per-backward")
    assert np.abs(found("a", "--mini-batch", "2") - found("b", "--mini-batch", "6")).max() > 1e-3
    assert np.abs(found("c", *by_group, "2") - found("d", *by_group, "5")).max() < 1e-5


def test_a_sketch_alone_is_close_to_the_exact_alignment(files, scorer, tmp_path, capsys):
    assert rank(files, scorer, tmp_path / "exact", "--exact", "--normalization", "group") == 0
    assert rank(files, scorer, tmp_path / "sketch") == 0
    assert "validation coherence" in capsys.readouterr().out
    exact, sketch = (read_jsonl(tmp_path / name) for name in ("exact", "sketch"))
    errors = [one["similarity"] - other["similarity"] for one, other in zip(exact, sketch, strict=True)]
    assert 0 < max(map(abs, errors)) < 5 / 4096**0.5
    assert [record["loss"] for record in exact] == [record["loss"] for record in sketch]


def test_exact_learnalign_takes_the_candidates_own_pooled_gradient(files, scorer, tmp_path):
    status = rank(files, scorer, tmp_path / "s", "--exact", "--strategy", "learnalign", "--mini-batch", "4")
    assert status == 0
    train = responses(GROUPS, SAMPLES, seed=3)
    expected = Oracle(files / "model").similarities(train, train, 4)
    assert {r["group_id"]: r["similarity"] for r in read_jsonl(tmp_path / "s")} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("padding", "ends"), [("<pad>", True), (None, True), ("<pad>", False)])
def test_a_padding_token_of_id_0_is_the_padding_token(files, scorer, tmp_path, padding, ends):
    """Where the padding token is 0, end tokens are terms of the loss; where there is none, they stand for padding."""
    folder = tmp_path / "files"
    shutil.copytree(files, folder)
    place = folder / "model/tokenizer_config.json"
    settings = json.loads(place.read_text()) | {"pad_token": padding}
    place.write_text(json.dumps(settings))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    assert tokenizer.pad_token_id == (0 if padding else None)
    assert tokenizer.eos_token_id
    end, parts = tokenizer.eos_token if ends else "", {}
    for name, groups, seed in (("train", GROUPS, 3), ("val", 4, 8)):
        records = responses(groups, SAMPLES, seed=seed)
        parts[name] = [{**record, "response": f"{record['response']}<pad>{end}"} for record in records]
        write_list(folder / f"{name}.json", parts[name])
    assert rank(folder, scorer, tmp_path / "s.jsonl", "--exact", "--mini-batch", "4") == 0
    found = {record["group_id"]: record["similarity"] for record in read_jsonl(tmp_path / "s.jsonl")}
    oracle = Oracle(folder / "model")
    expected = oracle.similarities(parts["train"], parts["val"], 4)
    assert found == pytest.approx(expected, abs=1e-6)
    oracle.padding = tokenizer.eos_token_id if padding else None
    other = oracle.similarities(parts["train"], parts["val"], 4)
    assert max(abs(other[group] - expected[group]) for group in expected) > 1e-3
