#!/usr/bin/env bash
# Measures everything that needs a GPU, in one go and within ten minutes, and leaves the
# results in the folder given as the first argument (default: runs/gpu). The second is
# the peer's command and the third the folder of the Bowl's 670 images, for the original's
# whole training; without it, that trains on the sample. The loader's rate is measured,
# too. Works on a CPU, with smaller sizes:
#   PYTHON=.venv/bin/python SMALL=1 experiments/benchmarks/gpu.sh runs/rehearsal
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-runs/gpu}
peer=${2:-}
data=${3:-}
python=${PYTHON:-python3}
small=${SMALL:-}
# JAX would take three quarters of the memory, and the peer needs some at the same time.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
mkdir -p "$out"
rm -f "$out/summary.txt"

step() { # name, seconds, command: one part, its output kept, its failure told
  local name=$1 limit=$2
  shift 2
  echo "== $name"
  timeout "$limit" "$@" > "$out/$name.log" 2>&1
  echo "$name exited with $?" | tee -a "$out/summary.txt"
  tail -n 12 "$out/$name.log"
}

if [ -n "$small" ]; then
  network=(--features=4,6,8 --size=32 --repeats=2)
  batches=2
  training=(--features=4,6,8 --size=32 --num_epochs=2 --steps_per_epoch=3)
else
  # Each repeat starts the peer anew, which compiles for a minute; so there is one.
  network=(--dtype=bfloat16 --repeats=1 --steps=30)
  batches=10,32,64
  training=(--dtype=bfloat16 --num_workers=8)
fi

if [ -n "$data" ]; then
  images=(--data_dir="$data")
else
  images=(--split= --truth=auto)
fi

step doctor 30 "$python" -m experiments.doctor
step speed 240 "$python" -m experiments.benchmarks "${network[@]}" \
  --batch_sizes="$batches" --parts=train,infer --peer="$peer" \
  --output="$out/speed.json"
step heads_and_loader 90 "$python" -m experiments.benchmarks "${network[@]}" \
  --batch_sizes="${batches%%,*}" --parts=infer,fast,loader --output="$out/heads.json"
step training 120 "$python" -m experiments.train \
  --flagfile=experiments/flagfiles/original.flags "${images[@]}" \
  "${training[@]}" --workdir="$out/original"
step tests 120 env NUCSEG_TEST_PLATFORM= "$python" -m pytest -m "not slow" \
  --ignore=tests/network/test_onednn.py tests/network tests/training
cat "$out/summary.txt"
! grep -qv " 0$" "$out/summary.txt"
