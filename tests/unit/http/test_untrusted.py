"""What the scorer is sent is data: no line of it, or of the contract, can turn bytes into code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FILES = sorted(
    path
    for folder in ("proto/gradalign", "services/scorer/gradalign_scorer")
    for path in (ROOT / folder).rglob("*.py")
    if "sketch" not in path.relative_to(ROOT / folder).parts[:1]
)
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "copyreg"}
CALLS = {"eval", "exec", "compile", "__import__", "load", "loads", "fromfile", "memmap", "system", "popen", "loadtxt"}
HARMLESS = {"json.loads", "self.config.load", "package.load", "point.load", "re.compile"}


def faults(source: str) -> list[str]:
    """What a module does that it must not."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [str(node.module)] if (node.module or "").split(".")[0] in MODULES else []
            found += [alias.name for alias in node.names if node.module == "torch" and alias.name == "load"]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name.rsplit(".", 1)[-1] in CALLS and name not in HARMLESS:
                found.append(name)
            found += [k.arg for k in node.keywords if k.arg in ("allow_pickle", "shell", "weights_only")]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_is_unpickled_or_evaluated(path):
    assert faults(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads as l",
        "import torch\ntorch.load(f)",
        "from torch import load as l",
        "np.load(f, allow_pickle=True)",
        "eval(x)",
        "subprocess.run(x, shell=True)",
        "yaml.load(x)",
        "marshal.loads(x)",
    ],
)
def test_the_test_sees_it(source):
    assert faults(source)


def test_all_files_are_looked_at():
    assert len(FILES) > 50
