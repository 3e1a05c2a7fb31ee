#!/usr/bin/env bash
# Runs a command in a memory cgroup, page cache included: limited.sh 4G flash-moe bench --memory 4GB ...
# Needs root. cgroup v1 (memory.limit_in_bytes) or v2 (memory.max), whichever is mounted.
set -euo pipefail
if (($# < 2)); then
  echo "usage: limited.sh LIMIT COMMAND [ARGUMENT...]   (LIMIT in bytes, or as 4G)" >&2
  exit 2
fi
limit=$1
shift
name=flash_moe_bench_$$
if [[ -d /sys/fs/cgroup/memory ]]; then
  group=/sys/fs/cgroup/memory/$name file=memory.limit_in_bytes
elif [[ -f /sys/fs/cgroup/cgroup.controllers ]]; then
  group=/sys/fs/cgroup/$name file=memory.max
else
  echo "limited.sh: no memory cgroup is mounted under /sys/fs/cgroup" >&2
  exit 2
fi
mkdir "$group"
trap 'rmdir "$group"' EXIT
echo "$limit" >"$group/$file"
(
  echo "$BASHPID" >"$group/cgroup.procs"
  exec "$@"
)
