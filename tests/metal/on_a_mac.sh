#!/bin/sh
# For people with an Apple Silicon Mac: builds flash_moe, tests the Metal backend on the real GPU with Metal's own API and
# shader checks on, measures, and leaves one report file to send back.
#   sh tests/metal/on_a_mac.sh [report.txt]
# Needs macOS 14 and the command line tools (xcode-select --install); with all of Xcode the kernels are compiled at build
# time. Nothing is installed outside a temporary folder. About 10 minutes. Ends with 0 when everything passed.
set -u
cd "$(dirname "$0")/../.."
report=${1:-metal_report.txt}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0

if [ "$(uname -s)" != Darwin ] || [ "$(uname -m)" != arm64 ]; then
  echo "on_a_mac.sh: wanted an Apple Silicon Mac, got $(uname -s) $(uname -m)" >&2
  exit 2
fi

say() {
  printf '\n== %s\n' "$1" | tee -a "$report"
}

# Runs a command, its output in the report and on the screen; a failure is noted and the rest still runs.
try() {
  title=$1
  shift
  say "$title"
  { "$@" 2>&1; echo "exit status $?"; } | tee "$scratch/last" | tee -a "$report"
  tail -n 1 "$scratch/last" | grep -q '^exit status 0$' || { failed=1; echo "FAILED: $title" | tee -a "$report"; }
}

: > "$report"
say "Machine"
{
  sw_vers
  sysctl -n machdep.cpu.brand_string hw.memsize hw.perflevel0.physicalcpu
  system_profiler SPDisplaysDataType | grep -E 'Chipset|Cores|Metal'
  git rev-parse HEAD 2>/dev/null
  xcrun --sdk macosx --find metal 2>&1 || echo "no Metal compiler: kernels are compiled at run time"
} 2>&1 | tee -a "$report"

python3 -m venv "$scratch/venv" || exit 2
python="$scratch/venv/bin/python"
try "Build" "$python" -m pip install --quiet .
try "Test packages" "$python" -m pip install --quiet -r tests/requirements.txt

# Both ways of getting kernels: the embedded metallib, and sources compiled at run time.
validation="FLASH_MOE_REQUIRE_METAL=1 MTL_DEBUG_LAYER=1 MTL_SHADER_VALIDATION=1 METAL_DEVICE_WRAPPER_TYPE=1"
try "Metal against the CPU in float32, validated" env $validation "$python" -m pytest -q tests/metal/device
try "Metal against the CPU in float32" env FLASH_MOE_REQUIRE_METAL=1 "$python" -m pytest -q tests/metal/device
try "A story, Metal" "$scratch/venv/bin/flash-moe" generate "Once upon a time" --max-tokens 60 --temperature 0 --backend metal
try "A story, CPU" "$scratch/venv/bin/flash-moe" generate "Once upon a time" --max-tokens 60 --temperature 0 --backend cpu
try "Benchmark, Metal" "$scratch/venv/bin/flash-moe" bench --backend metal --timing
try "Benchmark, CPU" "$scratch/venv/bin/flash-moe" bench --backend cpu --timing

say "Result"
if [ $failed = 0 ]; then echo "all passed"; else echo "something failed; see above"; fi | tee -a "$report"
echo "Please send $report back (an issue of the project is fine)."
exit $failed
