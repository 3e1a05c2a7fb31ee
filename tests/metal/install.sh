#!/bin/sh
# Installs what tests/metal needs on Debian 12 or Ubuntu: LLVM 19 and, into the folder given (default: build/metal-wheels),
# the wheel with Apple-compiled kernels and Apple's C++ headers. Nothing of that is committed.
set -e
folder=${1:-build/metal-wheels}
sudo=""
[ "$(id -u)" = 0 ] || sudo=sudo
$sudo apt-get update
$sudo apt-get install -y --no-install-recommends \
  clang-19 lld-19 llvm-19 libclang-rt-19-dev libblocksruntime-dev qemu-user
mkdir -p "$folder"
# MIT; the kernels in it are MLX's, compiled by Apple's compiler. metal-cpp in it is Apache-2.0.
python3 -m pip download --no-deps --only-binary=:all: --platform macosx_14_0_arm64 -d "$folder" mlx-metal==0.32.4
echo "set FLASH_MOE_METAL_WHEELS=$folder to run the tests that read the wheels"
