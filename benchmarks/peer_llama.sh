#!/usr/bin/env bash
# flash_moe and llama.cpp side by side: the same random weights of the 35B geometry, the same ids, one table.
# Each repeat is a new process of either, in turn, so that a drift of the machine meets both; the first of each is dropped.
# Settings, all by environment:
#   LAYERS   of the model (8); DIR is where it and its GGUF are written and kept (default: build/bench)
#   MODEL    another folder instead: qwen3_5_moe in MLX's layout, 4 bits; its GGUF is written beside it
#   TYPE     of the GGUF: q4_k (equal bytes) or q4_1
#   THREADS (2), PROMPT (128), TOKENS (64), REPEATS (5, and one more that is dropped)
#   LIMIT    as 4G: both run in a memory cgroup of that size (limited.sh, root) with nothing of the model cached before,
#            flash_moe with nine tenths of it as --memory; llama.cpp maps its file and repacks nothing
#   AHEAD    KB that the drive reads ahead under LIMIT, for both (128, Linux's default)
#   EXPERTS  a token for both, fewer than trained: LOSSY
#   REPACK   0: llama.cpp keeps the file's layout of weights in RAM, too (its default repacks them)
#   LIBRARY  a folder of llama.cpp's shared libraries (default: fetched from npm into DIR)
#   BEFORE   a command in front of each measured one, as "taskset -c 0,1"; PYTHON is the interpreter
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
dir=${DIR:-$here/../build/bench}
layers=${LAYERS:-8} type=${TYPE:-q4_k} threads=${THREADS:-2} prompt=${PROMPT:-128} tokens=${TOKENS:-64}
package=@node-llama-cpp/linux-x64@3.22.1  # llama.cpp v0.5.0, one CPU library for each instruction set
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

library=${LIBRARY:-$dir/node-llama-cpp/package/bins/linux-x64}
if [[ ! -f $library/_nlcBuildMetadata.json ]]; then
  mkdir -p "$dir/node-llama-cpp"
  (cd "$dir/node-llama-cpp" && npm pack --silent "$package" >/dev/null && tar -xzf ./*.tgz && rm ./*.tgz)
fi

model=${MODEL:-$dir/synth-35b-$layers}
model=${model%/}
gguf=$model-$type.gguf
[[ -f $model/config.json ]] || "$python" -m flash_moe synth qwen3.5-35b-a3b "$model" --layers "$layers"
# The settings keep freed memory in the process: its pages would be faulted in anew for each chunk.
[[ -f $gguf ]] || MALLOC_TRIM_THRESHOLD_=1000000000 MALLOC_MMAP_THRESHOLD_=1000000000 \
  "$python" "$here/write_gguf.py" "$model" "$gguf" --type "$type"

read -ra before <<<"${BEFORE:-}"
peer=(--library "$library" --threads "$threads" --prompt-tokens "$prompt" --max-tokens "$tokens")
ours=(--model "$model" --threads "$threads" --prompt-tokens "$prompt" --max-tokens "$tokens" --repeats 1
  --drive-seconds 0.05 --json)
if [[ -n ${EXPERTS:-} ]]; then
  ours+=(--experts-per-token "$EXPERTS")
  peer+=(--experts-per-token "$EXPERTS")
fi
if [[ -n ${LIMIT:-} ]]; then
  before=("$here/limited.sh" "$LIMIT" "${before[@]}")
  ours+=(--memory "$(numfmt --from=iec "$LIMIT" | awk '{printf "%dMB", $1 * 0.9 / 1e6}')")
  peer+=(--load-mode mmap --no-repack)
  drive=$(lsblk -no PKNAME "$(df --output=source "$dir" | tail -1)" | head -1)
  [[ -n $drive ]] || drive=$(basename "$(df --output=source "$dir" | tail -1)")
  ahead=/sys/block/$drive/queue/read_ahead_kb
  old=$(cat "$ahead")
  trap 'echo "$old" >"$ahead"' EXIT
  echo "${AHEAD:-128}" >"$ahead"
else
  ours+=(--memory "$(du -m "$model" | awk '{print int($1 * 1.4 + 1500)}')MB")
  if [[ ${REPACK:-1} == 0 ]]; then peer+=(--no-repack); fi
fi

# Pages that are cached already were charged to whoever read them, and would be memory beside the limit.
forget() {
  if [[ -z ${LIMIT:-} ]]; then return; fi
  for file in "$gguf" "$model"/*.safetensors; do dd if="$file" iflag=nocache count=0 status=none; done
}

out=$(mktemp -d "$dir/peer.XXXXXX")
trap 'cat "$out/log" >&2' ERR
for ((repeat = 0; repeat <= ${REPEATS:-5}; repeat++)); do
  echo "repeat $repeat of ${REPEATS:-5}" >&2
  forget
  "${before[@]}" "$python" -m flash_moe bench "${ours[@]}" >"$out/ours.$repeat.json" 2>"$out/log"
  forget
  "${before[@]}" "$python" "$here/peer_llama.py" "$gguf" "${peer[@]}" >"$out/peer.$repeat.json" 2>"$out/log"
done
"$python" "$here/peer_table.py" "$out"
