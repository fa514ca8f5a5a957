"""verl 0.9's registry, trainer base, dataset and loader with the plugin in them, without Ray: `verl09trainer.py FOLDER`.

Prints what was seen as JSON. The plugin is loaded as verl's entry points are, by an import of `verl` behind its own.
"""

import json
import logging
import sys

import torch
import verl09kit
import verl09run
from omegaconf import OmegaConf
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

from gradalign import GradAlignError
from gradalign_trainer.adapters.verl.v1.rows import COLUMNS, batch_rows
from gradalign_trainer.adapters.verl.v1.worker import MeasuringWorker
from gradalign_trainer.fallbacks import Fallbacks

GIVEN = ["+gradalign.scorer_url=http://127.0.0.1:9", "+gradalign.run_id=a", "+gradalign.retries=0"]
TRUSTED = "+gradalign.trusted_sources=[trusted]"
RUN = [*GIVEN, TRUSTED, "+gradalign.refresh_every=2", "+gradalign.use=weight"]


def made(folder, *options):
    config = verl09run.configuration(folder, 8, options)
    return TRAINER_REGISTRY[config.trainer.v1.trainer_mode](config)


def with_loader(folder, *options):
    trainer = made(folder, *options)
    trainer.global_steps = 0
    trainer._init_tokenizer()
    trainer._init_dataloader()
    return trainer


def drawn(trainer, batches):
    found = []
    for _ in range(batches):
        batch = trainer._fetch_one_gen_batch()
        infos = [getattr(info, "data", info) for info in batch["extra_info"]]
        found.append([[info["problem_id"], info["gradalign"]] for info in infos])
    return found


def refusal(folder, *options):
    try:
        with_loader(folder, *options)
    except GradAlignError as error:
        return str(error)
    return ""


class Recording:
    """A link to a scorer that writes down what it is asked."""

    validation, needs_validation, away, seconds, reasons = None, True, False, 0.0, Fallbacks()

    def __init__(self):
        self.asked = []

    def reachable(self):
        return True

    def refresh(self, measured, step):
        self.asked.append(["refresh", measured.length])

    def score(self, measured, step):
        self.asked.append(["score", list(measured.problem_ids)])

    def unmeasured(self):
        self.asked.append(["unmeasured"])

    def count_fallback(self):
        self.asked.append(["fallback"])


def asked(trainer, mark="trusted", **found):
    """What the scorer is asked where the workers found this of a batch of two problems, the second marked so."""
    masks = verl09kit.jagged([[1, 1], [1, 1]])
    infos = [{"problem_id": "a", "gradalign": ""}, {"problem_id": "t", "gradalign": mark}]
    columns = dict.fromkeys(COLUMNS, masks) | {"uid": ["u", "v"], "extra_info": infos}
    rows = batch_rows(columns, [{}, {}])
    plain = {"length": None, "held": True, "figures": {}, "fault": "", "lasting": False}
    trainer._link, own = Recording(), trainer._link
    trainer._measured = lambda *_, **__: (torch.ones(2, dtype=torch.float64), {**plain, **found})
    trainer._factors(None, rows, {})
    recorded, trainer._link = trainer._link.asked, own
    return recorded


def main(folder):
    logged = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    logging.getLogger("gradalign_trainer").addHandler(handler)
    seen = {"registry": sorted(TRAINER_REGISTRY)}
    seen["refused"] = {
        "settings": refusal(folder),
        "strategy": refusal(folder, *GIVEN, TRUSTED, "actor_rollout_ref.actor.strategy=fsdp"),
        "ulysses": refusal(
            folder, *GIVEN, TRUSTED, "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=2"
        ),
        "untrusted": refusal(folder, *GIVEN),
        "unknown": refusal(folder, *GIVEN, "+gradalign.trusted_sources=[elsewhere]"),
        "only trusted": refusal(folder, *GIVEN, "+gradalign.trusted_sources=[trusted,sums]"),
    }
    trainer = with_loader(folder, *RUN)
    seen["mode"] = [trainer.config.trainer.v1.trainer_mode, trainer.trainer_mode]
    seen["workers"] = trainer.train_dataloader.num_workers
    first = drawn(trainer, 3)
    state = trainer.train_dataloader.state_dict()
    seen["drawn"], seen["straight"] = first, drawn(trainer, 2)
    again = with_loader(folder, *RUN)
    again.train_dataloader.load_state_dict(state)
    seen["again"] = drawn(again, 2)
    alone = with_loader(folder, *RUN, "trainer.v1.trainer_mode=gradalign_colocate_async")
    seen["one by one"] = [batch[0] for batch in drawn(alone, 8)]
    seen["async mode"] = alone.trainer_mode
    trainer._init_resource_pool_mgr()
    seen["worker"] = [cls.__ray_actor_class__ is MeasuringWorker for cls in trainer.role_worker_mapping.values()]
    assert not logged
    alone = with_loader(folder, *GIVEN, TRUSTED, "+gradalign.refresh_every=2")
    seen["away"] = [drawn(alone, 3), list(logged)]
    logged.clear()
    seen["asked"] = {
        "new": asked(trainer, length=4.0),
        "without a signal": asked(trainer),
        "candidates failed": asked(trainer, length=4.0, fault="b"),
        "none to score against": asked(trainer, mark=""),
        "validation failed": asked(trainer, held=False, fault="c"),
    }
    trainer._said = ""
    logged.clear()
    trainer._say("a", lasting=False)
    trainer._say("a", lasting=False)
    trainer._say("", lasting=False)
    trainer._say("a", lasting=False)
    seen["faults"] = list(logged)
    logged.clear()
    seen["failed"] = [trainer._guarded(lambda: 1 / 0), trainer._guarded(lambda: int("x")), trainer._choose(["a"], 1, 0)]
    seen["joins"], seen["off"] = trainer._sampler._joins(), list(logged)
    print("SEEN " + json.dumps(seen))
    assert OmegaConf.select(trainer.config, "gradalign.run_id") == "a"


if __name__ == "__main__":
    main(*sys.argv[1:])
