"""The settings of a run from a TOML file and `--set key=value`, with every fault told at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from gradalign.wire.messages import GRADIENT_STRATEGIES
from gradalign_trainer.config.training import TrainConfig
from gradalign_trainer.settings import SettingsError, key_of, nearest, read_toml, with_override

__all__ = ["load_config"]

_FIELDS = {key_of(each): each for each in fields(TrainConfig) if key_of(each)}
_SECTIONS = {key.partition(".")[0] for key in _FIELDS if "." in key}
_TEXT = [key for key, each in _FIELDS.items() if each.type in ("str", "str | None", "Path")]


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, environ: Mapping[str, str] = os.environ
) -> TrainConfig:
    """The settings of a TOML file, with `--set` overrides applied in order.

    Args:
        path: of the file.
        overrides: `key=value` each, the key as the file spells it.
        environ: where `scorer.api_key_env` is looked up.

    Raises:
        SettingsError: the file cannot be read, a key is unknown, missing or given no valid value, or settings that
            are valid alone do not go together. Every fault that can be found is in it.
    """
    table = read_toml(Path(path))
    try:
        for assignment in overrides:
            with_override(table, assignment, _TEXT)
        config = _from_table(table)
        config = _with_key(config, environ)
    except SettingsError as error:
        raise SettingsError(error.faults, where=str(path)) from error
    return config


def _from_table(table: Mapping[str, Any]) -> TrainConfig:
    known: dict[str, Any] = {}
    faults = []
    for key, value in _flat(table):
        if key in _FIELDS:
            known[_FIELDS[key].name] = value
        else:
            faults.append(_unknown(key, value))
    required = [each.name for each in fields(TrainConfig) if each.default is MISSING]
    missing = [name for name in required if name not in known]
    faults += [f'{name} is missing; add a line like {name} = "my-run" at the top of the file.' for name in missing]
    try:
        known.update(dict.fromkeys(missing, "missing"))  # so that all else is checked too
        config = TrainConfig(**known)
    except SettingsError as error:
        raise SettingsError(faults + error.faults) from error
    faults += _clashes(config)
    if faults:
        raise SettingsError(faults)
    return config


def _flat(table: Mapping[str, Any], section: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in table.items():
        key = f"{section}{name}"
        if key not in _FIELDS and key in _SECTIONS and isinstance(value, Mapping):
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


def _unknown(key: str, value: Any) -> str:
    section, _, name = key.rpartition(".")
    if key == "scorer.api_key":
        return (
            "scorer.api_key does not belong in a file; put the key into an environment variable and name that with "
            "scorer.api_key_env (default GRADALIGN_API_KEY)."
        )
    if key in _SECTIONS:
        inside = ", ".join(other for other in _FIELDS if other.startswith(f"{key}."))
        return f"{key} = {value!r}: expected a section [{key}] with any of {inside}."
    if section in _SECTIONS and name in _FIELDS:
        return f"unknown key {key!r}; {name!r} stands at the top of the file, before the first [section]."
    near = [other for other in _FIELDS if other.startswith(f"{section}.")] if section in _SECTIONS else list(_FIELDS)
    hint = nearest(key, near) or nearest(key, _FIELDS)
    return f"unknown key {key!r}{hint}. Valid keys{f' of [{section}]' if section else ''}: {', '.join(near)}."


def _clashes(config: TrainConfig) -> list[str]:
    """What is wrong with values that are valid alone."""
    faults = []
    if config.scorer_url is None and config.needs_scorer:
        faults.append(
            f"scorer.url is missing, and strategy = {config.strategy!r} with mode = {config.mode!r} needs a scorer. "
            'Start one (gradalign serve) and add scorer.url = "http://127.0.0.1:8000", or set strategy = "random" and '
            'mode = "choose".'
        )
    # Of "graded": the worlds' held-out problems have honest graders, whose verifier is that string.
    if config.evaluation == "exact" and config.reward not in ("arithmetic", "exact", "graded"):
        faults.append(
            f'evaluation = "exact" counts the probability of one exact string, which reward {config.reward!r} does not '
            'reward alone. Set evaluation = "sampled".'
        )
    if config.mode in ("dynamic", "filter") and config.strategy != "random":
        faults.append(
            f'mode = "{config.mode}" draws at random and strategy = {config.strategy!r} would choose. Set strategy = '
            '"random", or mode = "choose".'
        )
    if config.strategy == "posterior" and (config.mode != "choose" or config.score_updates):
        faults.append(
            f"strategy = 'posterior' chooses by pass rates alone, and mode = {config.mode!r} with score_updates = "
            f"{str(config.score_updates).lower()} scores gradients. Set mode = 'choose' and score_updates = false, or "
            "another strategy."
        )
    if config.mode == "weight" and config.strategy == "oracle":
        faults.append("strategy = 'oracle' chooses here and gives no weights. Set mode = 'choose'.")
    if config.batch_validation and config.mode != "choose":
        faults.append(
            f'batch_validation = {config.batch_validation} joins the batches of mode "choose" only, and mode = '
            f'{config.mode!r}. Set batch_validation = 0, or mode = "choose".'
        )
    if config.batch_validation > config.validation_problems:
        faults.append(
            f"batch_validation = {config.batch_validation} is more than validation_problems = {config.validation_problems}. "
            "Set it to at most that."
        )
    faults += [
        f'{name} = true belongs to mode "weight", and mode = {config.mode!r}. Set {name} = false, or mode = "weight".'
        for name in ("train_on_validation", "proposals")
        if getattr(config, name) and config.mode != "weight"
    ]
    faults += _clashes_of_alignment(config)
    if config.model == "tiny-bytes" and config.warm_start is not None and config.warm_start_steps == 0:
        faults.append("model.warm_start is given and model.warm_start_steps is 0; expected at least 1 step, 300 say.")
    return faults


def _clashes_of_alignment(config: TrainConfig) -> list[str]:
    faults = []
    forward = config.alignment == "forward"
    whole = config.mode == "filter" or config.train_on_validation or config.score_updates
    if (config.alignment == "head" and whole) or (forward and config.mode == "filter"):
        faults.append(
            f'alignment = "{config.alignment}" gives no sketches of whole gradients, which mode = "filter", '
            'train_on_validation and score_updates take. Set alignment = "capture", or leave them out.'
        )
    if config.alignment not in ("capture", "head") and config.aggregation == "normalized":
        given = "exact_alignments = true" if config.exact_alignments else f'alignment = "{config.alignment}"'
        faults.append(
            f'{given} needs the validation gradient as one sum, which aggregation = "normalized" does not give. Set '
            'aggregation = "pooled" or "mean".'
        )
    if config.exact_alignments and forward:
        faults.append(
            'exact_alignments = true takes exact products with sketches, and alignment = "forward" sends none. Products by '
            "forward passes are exact to the step's error: set exact_alignments = false."
        )
    if forward and config.strategy in GRADIENT_STRATEGIES:
        faults.append(
            f'strategy = "{config.strategy}" needs more of the gradients than their products, which is all that alignment = '
            '"forward" gives. Set alignment = "capture", or a strategy that ranks by products (cosine or shrunken, say).'
        )
    if config.strategy == "shrunken" and not forward:
        faults.append(
            'strategy = "shrunken" needs the products of single rollouts, which sketches do not tell. Set alignment = '
            '"forward", or another strategy.'
        )
    if config.norms != "none" and not forward:
        faults.append(
            f'norms = "{config.norms}" goes with alignment = "forward", and "{config.alignment}" has norms of its '
            'own. Set norms = "none".'
        )
    if config.rollout_weights and not (forward and config.mode == "weight"):
        faults.append(
            f'rollout_weights = true belongs to mode "weight" with alignment = "forward", and mode = "{config.mode}" with '
            f'alignment = "{config.alignment}". Set rollout_weights = false, or those.'
        )
    return faults


def _with_key(config: TrainConfig, environ: Mapping[str, str]) -> TrainConfig:
    name = config.scorer_api_key_env
    key = environ.get(name) or None  # an empty variable is as good as none
    if key is None and name != TrainConfig.__dataclass_fields__["scorer_api_key_env"].default:
        raise SettingsError(
            [f"scorer.api_key_env names {name!r}, which is not set in the environment. Set it: export {name}=..."]
        )
    object.__setattr__(config, "scorer_api_key", key)
    return config
