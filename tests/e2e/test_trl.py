"""TRL's own GRPOTrainer with a curriculum: real runs, a real scorer, a tiny model on the CPU."""

import logging

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trlkit import VALIDATION_REWARD, graded, make_trainer, rows

from gradalign import Client, GradAlignError
from gradalign_trainer.adapters.trl import GradAlignGRPOTrainer
from gradalign_trainer.worlds.regimes import make_world

pytestmark = [
    # What TRL, transformers and accelerate warn of is theirs.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.slow,
]
BOTH = pytest.mark.parametrize("alignment", ["forward", "capture"])


@pytest.fixture
def play(base, scorer, tmp_path, run_id):
    """Makes a trainer on the session's scorer: `play("name", **settings of make_trainer)`."""

    def make(name="run", *, url=scorer.url, run_id=run_id, **settings):
        return make_trainer(base, tmp_path / name, url, run_id, **settings)

    return make


def problems_of(url, run_id):
    with Client(url, run_id=run_id) as client:
        return {row.problem_id: row for row in client.problems(limit=1000).problems}


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@BOTH
def test_a_run_is_scored_weighed_and_logged_and_validation_leaves_no_trace(play, scorer, run_id, alignment):
    trainer = play(gradalign={"alignment": alignment})
    trainer.train()
    assert sum(row.times_scored for row in problems_of(scorer.url, run_id).values()) == 4 * 4
    assert len(logged(trainer, "gradalign/weight")) == 4
    assert all(0 <= weight < 1 for weight in logged(trainer, "gradalign/weight"))
    assert logged(trainer, "gradalign/fallbacks") == [0] * 4
    own = {"capture": {"gradalign/coherence"}, "forward": {"gradalign/quotient", "gradalign/fidelity"}}[alignment]
    assert {"gradalign/alignment", "gradalign/no_signal", *own} <= set(trainer.state.log_history[0])
    # Had validation rollouts been counted, rewards of a thousand and twice the tokens would be there.
    assert max(logged(trainer, "reward")) <= 1 < VALIDATION_REWARD
    assert max(logged(trainer, "num_tokens")) <= 4 * 16 * (6 + 4)
    assert max(trainer._logs["rewards"]["graded"]) <= 1
    with Client(scorer.url, run_id=run_id) as client:
        kinds = [record.kind for record in client.rounds()]
        assert kinds == ["refresh", "score", "score"] * 2
        assert client.run().policy_version == 3
        assert client.run().kind == {"capture": "sketches", "forward": "products"}[alignment]


@BOTH
def test_trusted_problems_may_be_trained_on_too(play, scorer, run_id, alignment):
    """The same rows in both datasets."""
    trusted = rows(make_world("inverted", seed=3, pool=96, validation=8, heldout=24).validation, "validation")
    trainer = play(pool=trusted, gradalign={"alignment": alignment})
    trainer.train()
    assert logged(trainer, "gradalign/fallbacks") == [0] * 4
    problems = problems_of(scorer.url, run_id)
    assert set(problems) == set(trusted["problem_id"])
    assert sum(row.times_scored for row in problems.values()) == 4 * 4
    assert max(logged(trainer, "reward")) > 1  # they were generated for, as candidates


class Compared(GradAlignGRPOTrainer):
    """Holds the sketches of a batch to the gradient of TRL's own loss of it."""

    def _score(self, ids, output, *, ready):
        count = len(ids) // self.num_generations
        groups = torch.arange(len(ids)) // self.num_generations
        before = {name: parameter.grad for name, parameter in self._meter._sketcher.named()}
        sketches = self._meter.measure(output, groups, count)
        assert all(parameter.grad is before[name] for name, parameter in self._meter._sketcher.named())
        self._meter._captures = False
        torch.testing.assert_close(self._meter.measure(output, groups, count), sketches, rtol=1e-3, atol=1e-3)
        self._meter._captures = True
        self.model.zero_grad()
        self._compute_loss(self.model, output).backward()
        own = self._meter._sketcher.from_grads() * output["num_items_in_batch"]
        self.model.zero_grad()
        self.compared.append((sketches.sum(0), own))
        super()._score(ids, output, ready=ready)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_sketches_of_a_batch_add_up_to_the_gradient_that_trl_takes(play, lora):
    peft = {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"])} if lora else {}
    peft["gradalign"] = {"alignment": "capture"}
    trainer = play(kind=Compared, max_steps=2, per_device_train_batch_size=24, temperature=0.8, **peft)
    trainer.compared = []
    trainer.train()
    assert len(trainer.compared) == 2
    for ours, theirs in trainer.compared:
        assert theirs.norm() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.norm()))


def test_weights_multiply_the_advantages_and_nothing_else_changes(play):
    seen = []

    class Kept(GradAlignGRPOTrainer):
        def _score(self, ids, output, *, ready):
            before = output["advantages"].clone()
            super()._score(ids, output, ready=ready)
            seen.extend(zip(ids[::4], before.view(-1, 4), output["advantages"].view(-1, 4), strict=True))

    pool = make_world("inverted", seed=3, pool=96, validation=8, heldout=24).pool
    dull = {problem.problem_id for problem in pool[::4]}

    def reward(problem_id, part, **columns):
        marks = zip(graded(part=part, **columns), problem_id, part, strict=True)
        return [1.0 if where == "pool" and name in dull else mark for mark, name, where in marks]

    trainer = play(kind=Kept, reward_funcs=reward)
    trainer.train()
    assert {name in dull for name, *_ in seen} == {True, False}
    for name, before, after in seen:
        factor = (after / before).nan_to_num(0.0)
        torch.testing.assert_close(factor.min(), factor.max())
        assert 0 <= factor.min() <= 1
        assert not (name in dull and after.any())
    assert any(after.any() for _, _, after in seen)


@BOTH
@pytest.mark.parametrize(
    ("settings", "generations"),
    [
        ({"num_iterations": 2}, 2),
        ({"gradient_accumulation_steps": 2, "max_steps": 2}, 2),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 1, "max_steps": 2}, 4),
        ({"steps_per_generation": 2}, 2),
        ({"gradient_checkpointing": True, "max_steps": 1}, 1),
    ],
    ids=["iterations", "accumulation", "generation-within-accumulation", "generation-over-steps", "checkpointing"],
)
def test_each_generation_batch_is_scored_once(play, scorer, run_id, settings, generations, alignment):
    trainer = play(gradalign={"alignment": alignment}, **settings)
    trainer.train()
    groups = trainer.args.generation_batch_size // 4
    assert sum(row.times_scored for row in problems_of(scorer.url, run_id).values()) == generations * groups
    assert logged(trainer, "gradalign/fallbacks")[-1] == 0


def test_another_lora_config_under_the_same_run_is_refused(play):
    settings = {"max_steps": 1, "gradalign": {"alignment": "capture"}}
    play(**settings, peft_config=LoraConfig(r=4, target_modules=["q_proj"])).train()
    with pytest.raises(GradAlignError, match=r"another LoRA rank or other target_modules.*take a new run_id"):
        play(**settings, peft_config=LoraConfig(r=8, target_modules=["q_proj"])).train()


@pytest.mark.parametrize("use", ["select", "both"])
def test_the_sampler_takes_what_the_scorer_selects(play, scorer, run_id, use):
    batches = []

    class Kept(GradAlignGRPOTrainer):
        def _score(self, ids, output, *, ready):
            batches.append(list(ids))
            super()._score(ids, output, ready=ready)

    trainer = play(kind=Kept, gradalign={"use": use, "exploration": 0.25})
    trainer.train()
    assert all(ids == [name for name in ids[::4] for _ in range(4)] for ids in batches)
    rows = problems_of(scorer.url, run_id)
    assert sum(row.times_selected for row in rows.values()) > 0
    # Two batches are drawn before the first is scored; from then on three in four were seen before.
    seen = set(batches[0]) | set(batches[1])
    assert len(set(batches[3]) & (seen | set(batches[2]))) >= 2
    assert 0 < logged(trainer, "gradalign/explored")[-1] <= 1


@BOTH
def test_training_goes_on_while_the_scorer_is_dead_and_takes_it_back(play, start_scorer, run_id, caplog, alignment):
    caplog.set_level(logging.WARNING, "gradalign_trainer")
    first = start_scorer()
    port, calls = first.url.rpartition(":")[2], []

    def reward(completions, part, **columns):
        if part[0] == "pool":
            calls.append(len(calls))
            if len(calls) == 2:
                first.kill()
            if len(calls) == 4:
                start_scorer("--port", port)
        return graded(completions, part=part, **columns)

    trainer = play(url=first.url, reward_funcs=reward, max_steps=6, gradalign={"alignment": alignment})
    trainer.train()
    assert logged(trainer, "gradalign/fallback") == [0, 1, 1, 1, 0, 0]
    assert logged(trainer, "gradalign/fallbacks")[-1] == 3
    assert logged(trainer, "gradalign/fallbacks_away")[-1] == 3
    assert "3 batches went on as plain GRPO (3: the scorer was away)." in caplog.text
    assert caplog.text.count("is away (score). Training goes on without it") == 1
    assert "is back after 3 batches" in caplog.text


def test_a_run_may_be_told_to_stop_for_its_scorer(play):
    with pytest.raises(GradAlignError, match=r"127\.0\.0\.1:9"):
        play(url="http://127.0.0.1:9", gradalign={"fail_open": False}).train()


def test_a_streamed_dataset_is_weighed_and_cannot_be_selected_from(play, scorer, run_id):
    pool = rows(make_world("inverted", seed=3, pool=96, validation=8, heldout=24).pool).remove_columns("problem_id")
    play(pool=pool.to_iterable_dataset(), max_steps=2).train()
    named = problems_of(scorer.url, run_id)
    assert len(named) == 8
    assert all(name.startswith("sha256-") for name in named)
    with pytest.raises(GradAlignError, match="Load it without streaming=True"):
        play(pool=pool.to_iterable_dataset(), gradalign={"use": "select"})


def test_a_row_without_an_id_costs_its_batch_alone(play, run_id, caplog):
    caplog.set_level(logging.WARNING, "gradalign_trainer")
    problems = make_world("inverted", seed=3, pool=96, validation=8, heldout=24).pool

    def streamed(nameless):
        """Four problems are a batch."""
        pool = [{**row, "problem_id": None} if number in nameless else row for number, row in enumerate(rows(problems))]
        return Dataset.from_list(pool).to_iterable_dataset()

    refused = play(pool=streamed([2]), shuffle_dataset=False)
    with pytest.raises(GradAlignError, match=r"4 of 16 rows have no problem id; the log says why"):
        refused.train()
    refused.end_curriculum()
    trainer = play(pool=streamed([6, 13]), run_id=f"{run_id}-later", shuffle_dataset=False)
    trainer.train()
    assert logged(trainer, "gradalign/fallback") == [0, 1, 0, 1]
    assert logged(trainer, "gradalign/fallbacks_unmeasured")[-1] == 2
    assert caplog.text.count("A row of a batch: problem_id = None") == 1 + 1
    assert caplog.text.count("Batches like this go on as plain GRPO") == 1
