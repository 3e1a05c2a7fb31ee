#pragma once
// Writes a model folder as a pack (format/pack.h): one aligned record an expert, copied or quantised.
//
// Interrupted at any point, the folder says that it is unfinished and the same call goes on where it stopped: layers that
// are listed in the manifest and read back right are kept.

#include <cstdint>
#include <string>
#include <vector>

#include "model/weights_load.h"

namespace flash_moe::model {

// Bits for the modules whose name ends in `pattern`, in which '*' stands for any text: "down_proj", "layers.0.*".
// Routed experts are named "...layers.N.mlp.experts.gate_proj" (up_proj, down_proj), whatever the source calls them.
struct PackOverride {
  std::string pattern;
  int bits = 0;   // 0: as in the source
  int group = 0;  // 0: the default
};

struct PackSettings {
  int bits = 0;        // of the routed experts, 2, 3, 4, 5, 6 or 8; 0 copies everything
  int group = 64;      // 32, 64 or 128; a matrix that it does not divide takes the largest that does, or stays as it is
  int dense_bits = 8;  // of every other matrix, when `bits` is set; 0: as in the source
  std::vector<PackOverride> overrides;  // the last one that matches counts
  bool allow_requantise = false;  // also round what the source has quantised, where that makes it smaller
  int thread_count = 2;
};

struct PackResult {
  uint64_t bytes = 0;        // of the finished folder's weights
  int64_t layers_written = 0;
  int64_t layers_kept = 0;   // from an interrupted run
  int64_t tensors_left_out = 0;  // vision tower and multi-token-prediction head
};

// `progress` counts bytes written plus bytes read back. Routers and shared-expert gates never get fewer than 8 bits. Throws
// ConfigError (settings, a destination that holds something else, a source that is quantised already), FormatError (the
// source), IoError (disk full included: what is finished stays, and the call can be repeated), CancelledError (likewise).
PackResult pack_folder(const std::string& source, const std::string& destination, const PackSettings& settings,
                       const ByteProgress& progress = nullptr);

// Reads a finished pack whole and compares every checksum. FormatError names the first file and record that differs.
void verify_pack(const std::string& folder, const ByteProgress& progress = nullptr);

}  // namespace flash_moe::model
