#!/usr/bin/env bash
# The tests. Needs python3 and bash; sets up .venv by itself, once.
#
#   scripts/test.sh [--slow | --gpu] [pytest arguments]
#
#   (none)   the quick tests, a few minutes on two cores
#   --slow   every test that needs no GPU
#   --gpu    the tests that need a usable CUDA device, with the interpreter at hand
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/python.sh

marks="not slow and not gpu" workers=(-n 2)
case "${1:-}" in
    --slow) marks="not gpu"; shift ;;
    --gpu) marks="gpu" workers=(-p no:xdist); shift ;;
esac

if [ "$marks" = gpu ]; then
    need test numpy scipy sklearn h5py tqdm pytest
else
    oracles=()
    [ "${ENERGYSCAPE_ORACLES:-}" = required ] && oracles=(cupy nvidia.cuda_nvrtc skglm)
    need test numpy scipy sklearn h5py tqdm pytest xdist pandas matplotlib PIL build setuptools \
        wheel ${oracles[@]+"${oracles[@]}"}
fi

# Two workers share two cores, so each gets one thread.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
exec "$PYTHON" -m pytest "${workers[@]}" -m "$marks" "$@"
