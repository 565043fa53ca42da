#!/usr/bin/env bash
# Everything that wants a GPU, in one go: the timings of gpu.py, the tests of the mathematics with their merges on the
# GPU, and one simulation on the GPU beside the same on the CPU.
#
#   benchmarks/gpu.sh FOLDER [python]     # results into FOLDER: gpu.txt, gpu.json, tests.txt, simulate-*.json
set -u
out=$(realpath "$1")
python=${2:-python3}
cd "$(dirname "$0")/.."
mkdir -p "$out"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false FLWR_TELEMETRY_ENABLED=0
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
timeout "${LIMIT:-600}" "$python" benchmarks/gpu.py --repeats 5 --only ${PARTS:-kernels product host} --json "$out/gpu.json" 2>&1 |
    tee "$out/gpu.txt"
# Warnings of other versions than the tested ones are no failures here.
timeout 200 "$python" -m pytest -q -p no:cacheprovider -W ignore -n 12 -m "not slow" --doctest-modules \
    tests/kernels tests/adapters tests/rules > "$out/tests.txt" 2>&1
tail -40 "$out/tests.txt" | cut -c1-200
for device in ${DEVICES-cuda cpu}; do
    timeout 100 "$python" -m fedmerge simulate --json --set train.device=$device --set "run.output='$out/run-$device'" \
        > "$out/simulate-$device.json" 2> "$out/simulate-$device.log" || tail -5 "$out/simulate-$device.log"
    rm -rf "$out/run-$device"
done
