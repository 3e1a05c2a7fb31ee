#!/usr/bin/env bash
# A synthetic model of the 35B geometry, as many layers as fit, measured in RAM and in less of it.
# Rows go to benchmarks/results.tsv. Settings, all by environment:
#   LAYERS   of the model (default: what a third of the available memory and half of the free disk hold, at most 40)
#   DIR      where the model is written and kept for the next run (default: build/bench; KEEP=0 removes it)
#   TOKENS, PROMPT, REPEATS   of each measurement; NOTE goes into every row; PYTHON is the interpreter
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
dir=${DIR:-$here/../build/bench}
layer_mb=470 base_mb=650  # of the 35B geometry at 4 bits: a layer; embedding and head
mkdir -p "$dir"

available_mb=$(awk '/MemAvailable/ {print int($2 / 1024)}' /proc/meminfo)
free_mb=$(df -Pm "$dir" | awk 'NR == 2 {print $4}')
if [[ -z ${LAYERS:-} ]]; then
  room_mb=$((available_mb / 3 < free_mb / 2 ? available_mb / 3 : free_mb / 2))
  LAYERS=$(((room_mb - base_mb) / layer_mb))
  LAYERS=$((LAYERS > 40 ? 40 : LAYERS))
fi
if ((LAYERS < 1)); then
  echo "run_cpu.sh: wanted room for one layer, got $available_mb MB of memory and $free_mb MB of disk" >&2
  exit 2
fi

model=$dir/synth-35b-$LAYERS
[[ -f $model/config.json ]] || "$python" -m flash_moe synth qwen3.5-35b-a3b "$model" --layers "$LAYERS"

# In RAM; then half and a quarter of the model, but never less than what works (weights that are always resident).
model_mb=$((base_mb + LAYERS * layer_mb))
in_ram=$((model_mb * 13 / 10 + 1200))
budgets=${in_ram}MB
for part in 2 4; do
  least=$("$python" -m flash_moe plan --model "$model" --no-measure --json --context 512 |
    "$python" -c 'import json, sys; print(json.load(sys.stdin)["plan"]["memory_bytes_min"] * 11 // 10**7)')
  budget=$((model_mb / part > least ? model_mb / part : least))
  budgets+=,${budget}MB
done

common=(--model "$model" --max-tokens "${TOKENS:-64}" --repeats "${REPEATS:-3}"
  --results "$here/results.tsv" --note "${NOTE:-}" --timing)
"$python" -m flash_moe bench "${common[@]}" --memory "$budgets" --prompt-tokens "${PROMPT:-128}" "$@"

if [[ ${KEEP:-1} == 0 ]]; then rm -r "$model"; fi
