#pragma once
// How an engine is opened. Every default is the exact and automatic choice.

#include <cstdint>
#include <string>

#include "flash_moe/export.h"

namespace flash_moe {

struct EngineOptions {
  std::string backend = "auto";      // auto | cpu | metal | cuda
  uint64_t memory_bytes = 0;         // bound on the whole process; 0 chooses from what the machine has free
  int64_t experts_per_token = 0;     // 0: as trained. Fewer is lossy, and stats say so.
  int thread_count = 0;              // 0: one for each core the process may use
  std::string activations = "auto";  // auto | float32
  std::string kv_dtype = "auto";     // auto | float32 | bfloat16; auto is float32 with float32 activations

  // Speed only: none of these changes a result.
  std::string isa = "auto";          // cpu kernels by name; all but "accelerate" give the same bits
  std::string cache = "auto";        // auto | slots (own memory, direct reads) | both (own memory, read through the page
                                     // cache) | os (the page cache keeps experts)
  std::string policy = "auto";       // eviction policy by name
  std::string io = "auto";           // auto | threads | uring | gcd
  int queue_depth = 0;               // reads in flight; 0: default of the queue
  int64_t cache_slots = 0;           // experts held; 0: what the memory bound leaves
  int64_t prefill_chunk = 0;         // tokens a prefill step; 0: chosen by the memory bound
  std::string prefetch = "auto";     // auto | on | off: read ahead by the next layer's router; auto tries what is faster

  // When `open` returns: "whole" once all dense weights are read, "background" while they are being read; "auto" is background
  // from 256 MiB of them on. With fail_read it is whole: the read that fails is to be an expert's.
  std::string load = "auto";

  // Faults for tests: the Nth read of the process's life through this engine fails with EIO. 0: none.
  uint64_t fail_read = 0;
};

}  // namespace flash_moe
