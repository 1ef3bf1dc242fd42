#!/usr/bin/env bash
# An RBM trained by a cluster of processes on this machine, in about a minute: a scheduler and three
# workers, one of which is killed in the middle; the two that are left go on from the checkpoint.
# Needs python3 and bash; sets up .venv by itself, once.
#
#   scripts/cluster_demo.sh [FOLDER]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/python.sh
need cluster numpy scipy sklearn h5py tqdm dask distributed matplotlib

out=${1:-out/cluster_demo}
mkdir -p "$out"
scheduler=$out/scheduler.json
rm -f "$scheduler" "$out/rbm.h5"
# Workers whose scheduler goes first would wait for it.
trap 'kill -KILL $(jobs -p) 2>/dev/null; rm -f "$scheduler"' EXIT

export OMP_NUM_THREADS=1
"$PYTHON" -m dask scheduler --host 127.0.0.1 --port 0 --no-dashboard --scheduler-file "$scheduler" \
    >"$out/scheduler.log" 2>&1 &
while [ ! -s "$scheduler" ]; do sleep 0.1; done
for i in 1 2 3; do
    "$PYTHON" -m dask worker --no-nanny --nthreads 1 --no-dashboard --memory-limit 0 \
        --scheduler-file "$scheduler" >"$out/worker-$i.log" 2>&1 &
    victim=$!
done

train() {
    "$PYTHON" -m energyscape.cli train digits --binarize threshold --model RBM -p n_components=200 \
        --trainer PCD -t n_epochs=300 -t learning_rate=0.1 --seed 0 --out "$out/rbm.h5" \
        --cluster "$scheduler" --image-shape 8,8 "$@"
}

echo "== three workers; one is killed after the first checkpoint =="
(while [ ! -e "$out/rbm.h5" ]; do sleep 0.2; done; sleep 1; kill -KILL "$victim") &
if train; then
    echo "the training was over before the worker was killed" >&2
    exit 1
fi
echo "== two workers go on =="
train --resume
"$PYTHON" -m energyscape.cli plot "$out/rbm.h5" samples -n 64 --out "$out/samples.png" --seed 0
"$PYTHON" -m energyscape.cli plot "$out/rbm.h5" filters -n 100 --out "$out/filters.png"
echo "look at $out/samples.png and $out/filters.png"
