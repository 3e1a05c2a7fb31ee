#!/usr/bin/env bash
# How many instructions the products of one row take, counted by valgrind: a figure without noise.
#
# Usage: benchmarks/kernel_instructions.sh KERNEL_SPEED [table, default avx2] [inputs, default 2048]
#
# KERNEL_SPEED is the built program (see README.md). Valgrind knows AVX2 and no AVX-512. What 101 passes take more than one is
# that of a hundred.
set -euo pipefail
program=$1 table=${2:-avx2} inputs=${3:-2048}

instructions() {  # of so many passes of a format
  valgrind --tool=callgrind --callgrind-out-file=/dev/null "$program" passes "$1" "$table" "$inputs" "$2" 2>&1 >/dev/null |
    sed -n 's/.*Collected : //p'
}

printf '%-14s %10s %22s\n' "$table, $inputs" "bytes" "bytes an instruction"
for format in "affine 2 g64" "affine 3 g64" "affine 4 g64" "affine 4 g32" "affine 6 g64" "affine 8 g64" mxfp4 nvfp4 "fp8 block" bf16; do
  bytes=$("$program" passes 1 "$table" "$inputs" "$format")
  first=$(instructions 1 "$format") last=$(instructions 101 "$format")
  printf '%-14s %10d %22s\n' "$format" "$bytes" "$(awk -v b="$bytes" -v n=$((last - first)) 'BEGIN { printf "%.2f", 100 * b / n }')"
done
