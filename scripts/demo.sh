#!/usr/bin/env bash
# An RBM on real digits, in about two minutes. Needs python3 and bash; sets up .venv by itself.
#
#   scripts/demo.sh [--out FOLDER] [--bundled]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/python.sh
need plot numpy scipy sklearn h5py tqdm matplotlib
exec "$PYTHON" scripts/demo.py "$@"
