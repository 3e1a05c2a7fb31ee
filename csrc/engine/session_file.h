#pragma once
// A session on disk: tokens and state of one sequence, bound to the model that made it.
//
// Layout, little-endian: magic "FMSESS01", fingerprint u64, kv_is_bf16 u64, token count u64, piece count u64, tokens i32 [count],
// then each piece of Sequence::visit as bytes u64 and data, then a checksum u64 of everything before it.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace flash_moe::engine {

struct SessionIdentity {
  uint64_t fingerprint = 0;  // of the model: config, files, precision of its state
  bool kv_is_bf16 = false;
  int64_t context = 0;
};

// Written beside `path` and renamed. IoError when the disk fails or is full; the old file is then untouched.
void write_session(const std::string& path, const SessionIdentity& identity, std::span<const int32_t> tokens,
                   backend::Sequence& sequence);

// Fills an empty `sequence` and returns its tokens. FormatError when the file is damaged or of another model.
std::vector<int32_t> read_session(const std::string& path, const SessionIdentity& identity,
                                  backend::Sequence& sequence);

// Mixes bytes into a 64-bit hash: damage and mix-ups are what it finds, not malice.
uint64_t mix_hash(uint64_t seed, const void* data, size_t bytes);

}  // namespace flash_moe::engine
