#pragma once
// The project's own layout of a model on disk: its manifest, and where a record's parts lie. docs/FORMAT.md section 4.
//
// DESIGN: a pack is a folder. manifest.json stands first, with "complete": false, and is replaced by renaming as layers
// become final; only the last replacement says true. A layer's file exists under its final name only when whole. So a
// folder that loads was finished, and one that was interrupted says so. model/pack_model.cpp writes it.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/shape.h"
#include "format/expert_map.h"
#include "format/json.h"

namespace flash_moe::format {

inline constexpr int64_t pack_version = 1;
inline constexpr uint64_t record_alignment = 4096;
inline constexpr uint64_t part_alignment = 64;
inline constexpr const char* manifest_name = "manifest.json";

// How one expert lies in its record, and the record in its layer's file: expert e at e * record_bytes.
struct PackLayer {
  int64_t layer = 0;
  std::string file;  // "experts.07.pack"
  uint64_t record_bytes = 0;
  SlotMatrix gate;
  SlotMatrix up;
  SlotMatrix down;
  std::vector<uint32_t> checksums;  // CRC-32C of each expert's whole record
};

struct PackFile {
  std::string file;
  uint64_t bytes = 0;
  uint32_t checksum = 0;
};

struct PackManifest {
  bool complete = false;
  Json source;   // what it was made of: compared when a pack is resumed
  Json options;  // how: compared too
  PackFile dense;                 // safetensors with every tensor but the routed experts'; empty name until written
  std::vector<PackLayer> layers;  // MoE layers that are final, ascending
};

// Places gate, up and down (forms; pointers null) in a record; `layer`, `file` and `checksums` are left to the caller.
PackLayer layout_record(const ExpertMatrices& forms);

// Throws FormatError. Everything that can be checked without the model's shape is.
PackManifest parse_manifest(std::string_view text, const std::string& where);
std::string write_manifest(const PackManifest& manifest);

// Nothing when the folder has no pack's manifest. FormatError for an unfinished pack, unless `unfinished` allows it.
std::optional<PackManifest> read_manifest(const std::string& folder, bool unfinished = false);

// The experts of a finished pack by model layer, `file` being the index into open_pack_files. FormatError when layers
// or dimensions are not those of `shape`, or a file has not the size that the manifest states.
std::vector<ExpertLayer> pack_expert_layers(const PackManifest& manifest, const ModelShape& shape,
                                            const std::string& folder);
std::vector<std::shared_ptr<io::File>> open_pack_files(const PackManifest& manifest, const std::string& folder);

}  // namespace flash_moe::format
