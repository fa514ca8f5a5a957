"""Install torch by pip from the index that fits the machine: install_torch.py INDEX REQUIREMENT [PIP OPTIONS].

The Makefile and the images call it. On Linux pip's default index has torch with CUDA, several GB of it; PyTorch's own
index has a small build for the CPU. INDEX is one of

    auto       cpu on Linux without an NVIDIA GPU, else default
    default    pip's own index, as pip is configured
    cpu        PyTorch's index of that build; so are cu130, rocm7.1, xpu and the like
    https://.. any other index that has torch

Where an index does not answer within some seconds, or has no such torch, one line says so, and the default one is used.
"""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

PYTORCH = "https://download.pytorch.org/whl/"
BUILD = re.compile(r"cpu|cu\d+|rocm[\d.]+|xpu")
PATIENCE = 20.0
"""Seconds for names, all addresses and the reply; an address that swallows packets would take minutes otherwise."""


def has_nvidia_gpu(root: Path = Path("/")) -> bool:
    """Whether an NVIDIA driver is there."""
    traces = ("dev/nvidia0", "proc/driver/nvidia/version", "usr/lib/wsl/lib/nvidia-smi")
    return shutil.which("nvidia-smi") is not None or any((root / trace).exists() for trace in traces)


def index_of(choice: str, *, linux: bool, nvidia: bool) -> str | None:
    """The URL of the index that INDEX names; None for pip's own.

    Raises:
        ValueError: it names none.
    """
    if choice in ("", "auto"):
        choice = "cpu" if linux and not nvidia else "default"
    if choice == "default":
        return None
    if BUILD.fullmatch(choice):
        return PYTORCH + choice
    if re.match(r"(https?|file)://.", choice):
        return choice.rstrip("/")
    raise ValueError(
        f"TORCH_INDEX is {choice!r}; expected auto, default (CUDA on Linux), cpu, another folder of {PYTORCH} such as "
        "cu130, or the URL of an index."
    )


def fault_of(index: str, patience: float = PATIENCE) -> str | None:
    """Why an index cannot be used; None if it answers.

    Certificates and passwords are pip's to judge, which may be configured for them.
    """
    answers: list[str | None] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{index}/torch/", timeout=patience):  # noqa: S310
                answers.append(None)
        except urllib.error.HTTPError as error:
            answers.append(None if error.code == 401 else f"it answers {error.code}")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            answers.append(None if isinstance(reason, ssl.SSLCertVerificationError) else str(reason))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(patience)
    return answers[0] if answers else f"no answer within {patience:g} s"


def say(text: str) -> None:
    """A line for the one who waits."""
    sys.stderr.write(f"torch: {text}\n")


def pip_install(*arguments: str) -> int:
    """Run pip, as this Python has it; its exit status."""
    return subprocess.run([sys.executable, "-m", "pip", "install", *arguments], check=False).returncode  # noqa: S603


def main(choice: str, requirement: str, *options: str) -> int:
    """Install; the exit status of pip."""
    try:
        index = index_of(choice, linux=sys.platform.startswith("linux"), nvidia=has_nvidia_gpu())
    except ValueError as error:
        say(str(error))
        return 2
    if index is not None:
        fault = fault_of(index)
        # Without torch's own requirements, which PyTorch's index has in other versions; the last step brings them.
        alone = ("--no-deps", "--index-url", index, "--timeout", "15", "--retries", "2")
        if fault is None and pip_install(*options, *alone, requirement):
            fault = f"pip finds no {requirement} there"
        if fault is None:
            say(f"from {index}")
        else:
            say(f"not from {index} ({fault}), but from pip's default index; another one: TORCH_INDEX=URL")
    return pip_install(*options, requirement)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
