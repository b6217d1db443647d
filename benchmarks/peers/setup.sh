#!/bin/sh
# An environment of the peers' own, beside which benchmarks/probes.py --peers DIR puts ours.
#
#     benchmarks/peers/setup.sh DIR [more options of pip install]
#
# Cockpit imports pkg_resources, which setuptools lost in 81; BackPACK pulls a torchvision that
# breaks against a CPU build of torch, and neither needs it here.
set -eu
directory=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
python3 -m venv "$directory"
"$directory/bin/pip" install --quiet "$@" -r "$here/requirements.txt"
"$directory/bin/pip" uninstall --quiet --yes torchvision
"$directory/bin/pip" install --quiet "$@" --no-deps -r "$here/alone.txt"
"$directory/bin/python" "$here/steps.py" --check
