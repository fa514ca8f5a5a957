#!/usr/bin/env bash
# The environment of bench_peers.py, outside the repository: `tests/bench/make_peers.sh FOLDER`.
# torch comes first, so that no peer brings another one. LogIX is left out: it needs a Python below 3.11.
set -euo pipefail
folder=${1:?give a folder outside the repository}
python3 -m venv "$folder"
"$folder/bin/python" -m pip install --quiet torch==2.13.0
"$folder/bin/python" -m pip install --quiet torch==2.13.0 traker dattri bergson transformers numba httpx msgpack
# dattri brings builds of these for another torch; what is measured here uses neither.
"$folder/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio
"$folder/bin/python" -m pip list | grep -iE '^(torch|traker|dattri|bergson|transformers|numba) '
