#include "model/pack_model.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "flash_moe/error.h"
#include "format/affine.h"
#include "format/crc32c.h"
#include "io/output_file.h"
#include "model/pack_dense.h"
#include "model/pack_files.h"
#include "model/pack_settings.h"
#include "model/weights.h"

namespace flash_moe::model {
namespace {

namespace fs = std::filesystem;
using format::Json;
using format::PackLayer;
using format::PackManifest;
using format::SlotMatrix;

// Tokenizers and templates are copied into the pack; anything larger is no such file.
constexpr uint64_t copied_file_bytes_max = 128 << 20;

bool ends_with(const std::string& text, std::string_view end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

bool same_form(const Matrix& a, const Matrix& b) {
  return a.format == b.format && a.bits == b.bits && a.group == b.group && a.scale_dtype == b.scale_dtype;
}

std::string layer_file_name(int64_t layer) {
  char name[40];
  std::snprintf(name, sizeof name, "experts.%02d.pack", static_cast<int>(layer));
  return name;
}

// Copies or rounds one matrix of an expert into its place in the record.
void fill_matrix(const Matrix& source, const SlotMatrix& target, uint8_t* record, const std::string& what) {
  uint8_t* data = record + target.data_offset;
  uint8_t* scales = record + target.scales_offset;
  uint8_t* biases = record + target.biases_offset;
  const Matrix& form = target.form;
  if (same_form(source, form)) {
    std::memcpy(data, source.data, static_cast<size_t>(form.data_bytes()));
    const auto scales_bytes = static_cast<uint64_t>(form.scales_bytes());
    if (scales_bytes == 0) return;
    check_finite(source.scales, scales_bytes, form.scale_dtype, what + " scales");
    std::memcpy(scales, source.scales, scales_bytes);
    if (form.format != MatrixFormat::affine) return;
    check_finite(source.biases, scales_bytes, form.scale_dtype, what + " biases");
    std::memcpy(biases, source.biases, scales_bytes);
    return;
  }
  std::vector<float> values(static_cast<size_t>(form.cols));
  for (int64_t row = 0; row < form.rows; ++row) {
    format::dequantise_row(source, row, values.data());
    const int64_t scale_at = row * form.scale_row_bytes();
    if (!format::quantise_affine_row(values.data(), form,
                                     {data + row * form.row_bytes(), scales + scale_at, biases + scale_at})) {
      throw FormatError(what + " row " + std::to_string(row) +
                        " holds NaN, infinity or a value too large to quantise (the file is damaged)");
    }
  }
}

class Packer {
 public:
  Packer(const std::string& source, std::string destination, const PackSettings& settings)
      : destination_(std::move(destination)), settings_(settings), formats_(settings),
        files_(ModelFiles::open(source)), dense_(*files_, formats_) {
    for (int64_t layer = 0; layer < files_->shape().layer_count(); ++layer) {
      if (files_->experts()->expert_count(layer) > 0) wanted_.push_back(plan_layer(layer));
    }
    formats_.check_overrides_used();
    refuse_same_folder(source);
    manifest_.source = source_json(source);
    manifest_.options = formats_.json();
  }

  PackResult run(const ByteProgress& report) {
    PackResult result;
    result.tensors_left_out = files_->summary().vision_tensors + files_->summary().mtp_tensors;
    result.bytes = dense_.bytes();
    for (const PackLayer& layer : wanted_) result.bytes += layer_bytes(layer);
    PackProgress progress(report, 2 * result.bytes);
    if (open_destination()) {
      result.layers_kept = static_cast<int64_t>(manifest_.layers.size());
      return result;
    }
    check_space(result.bytes);
    // From here on the folder says that it is unfinished, whatever happens.
    save_manifest();
    copy_small_files();
    pack_dense(progress);
    for (const PackLayer& wanted : wanted_) {
      const bool kept = keep_layer(wanted, progress);
      if (!kept) write_layer(wanted, progress);
      ++(kept ? result.layers_kept : result.layers_written);
    }
    manifest_.complete = true;
    save_manifest();
    return result;
  }

 private:
  std::string path(const std::string& name) const { return destination_ + "/" + name; }

  uint64_t layer_bytes(const PackLayer& layer) const {
    return layer.record_bytes * static_cast<uint64_t>(files_->shape().experts);
  }

  PackLayer plan_layer(int64_t layer) {
    const ExpertMatrices& forms = files_->expert_forms(layer);
    const std::string prefix = "model.layers." + std::to_string(layer) + ".mlp.experts.";
    PackLayer out = format::layout_record({formats_.expert(prefix + "gate_proj", forms.gate),
                                           formats_.expert(prefix + "up_proj", forms.up),
                                           formats_.expert(prefix + "down_proj", forms.down)});
    out.layer = layer;
    out.file = layer_file_name(layer);
    return out;
  }

  void refuse_same_folder(const std::string& source) const {
    std::error_code error;
    if (fs::equivalent(source, destination_, error)) {
      throw ConfigError("pack destination " + destination_ + " is the source itself");
    }
  }

  // Changes whenever another source would give other bytes; reads headers only.
  Json source_json(const std::string& source) const {
    uint32_t checksum = 0;
    const auto add = [&](const std::string& text) { checksum = format::crc32c(checksum, text.data(), text.size() + 1); };
    add(format::read_text_file(source + "/config.json"));
    std::vector<std::string> lines;
    for (const auto& [name, info] : files_->checkpoint().tensors()) {
      lines.push_back(name + dtype_name(info.dtype) + format::shape_text(info.shape) + std::to_string(info.offset));
    }
    std::sort(lines.begin(), lines.end());
    for (const std::string& line : lines) add(line);
    for (const auto& file : files_->experts()->files()) add(std::to_string(file->size_bytes()));
    return Json::Object{{"format", files_->summary().format},
                        {"quantisation", files_->summary().quantisation},
                        {"checksum", int64_t{checksum}}};
  }

  // An earlier run may have been killed while it wrote its first file, the manifest.
  bool holds_nothing() const {
    const std::string first_file = std::string(format::manifest_name) + io::partial_suffix;
    std::error_code error;
    const fs::directory_iterator entries(destination_, error);
    if (error) throw IoError("list folder " + destination_ + ": " + error.message());
    return std::all_of(begin(entries), end(entries),
                       [&](const fs::directory_entry& entry) { return entry.path().filename() == first_file; });
  }

  // Makes the folder, or takes over what an earlier run listed. True when that run finished.
  bool open_destination() {
    std::error_code error;
    fs::create_directories(destination_, error);
    if (error) throw IoError("create folder " + destination_ + ": " + error.message());
    auto before = format::read_manifest(destination_, true);
    if (!before) {
      if (!holds_nothing()) {
        throw ConfigError("pack destination " + destination_ + " is not empty and holds no pack");
      }
      return false;
    }
    if (write_json(before->source) != write_json(manifest_.source) ||
        write_json(before->options) != write_json(manifest_.options)) {
      throw ConfigError("pack destination " + destination_ + " holds a pack of another source or with other " +
                        "options; remove it, or pack elsewhere");
    }
    manifest_ = std::move(*before);
    return manifest_.complete;
  }

  void check_space(uint64_t bytes) const {
    uint64_t present = manifest_.dense.bytes;
    for (const PackLayer& layer : manifest_.layers) present += layer.record_bytes * layer.checksums.size();
    std::error_code error;
    const fs::space_info space = fs::space(destination_, error);
    const uint64_t wanted = bytes - std::min(bytes, present);
    if (!error && space.available < wanted) {
      throw IoError("pack destination " + destination_ + " has " + std::to_string(space.available) +
                    " bytes free, wanted " + std::to_string(wanted));
    }
  }

  void save_manifest() const { write_text_file(path(format::manifest_name), write_manifest(manifest_)); }

  // config.json, tokenizer, templates, licence: whatever is small and no weight.
  void copy_small_files() const {
    for (const auto& entry : fs::directory_iterator(files_->summary().path)) {
      const std::string name = entry.path().filename().string();
      std::error_code error;
      const bool is_weight = ends_with(name, ".safetensors") || ends_with(name, ".safetensors.index.json") ||
                             ends_with(name, ".pack") || ends_with(name, io::partial_suffix) || ends_with(name, ".bin") ||
                             ends_with(name, ".gguf") || name == format::manifest_name;
      if (name[0] == '.' || is_weight || !entry.is_regular_file(error) ||
          entry.file_size(error) > copied_file_bytes_max) {
        continue;
      }
      const io::File file(entry.path().string());
      std::string bytes(file.size_bytes(), '\0');
      file.read_exact(bytes.data(), bytes.size(), 0);
      write_text_file(path(name), bytes);
    }
  }

  void pack_dense(PackProgress& progress) {
    const format::PackFile& listed = manifest_.dense;
    std::error_code error;
    if (!listed.file.empty() && listed.bytes == dense_.bytes() && fs::exists(path(listed.file), error) &&
        compare_checksums(path(listed.file), listed.bytes, listed.bytes, {&listed.checksum, 1}, progress).empty()) {
      progress.add(listed.bytes);
      return;
    }
    const format::PackFile dense = dense_.write(destination_, settings_.thread_count, progress);
    need_equal(compare_checksums(path(dense.file), dense.bytes, dense.bytes, {&dense.checksum, 1}, progress));
    manifest_.dense = dense;
    save_manifest();
  }

  static void need_equal(const std::string& difference) {
    if (!difference.empty()) throw IoError("read back " + difference + " (is the drive sound?)");
  }

  // True when the layer is listed and reads back right; a listed one that does not is taken off the list.
  bool keep_layer(const PackLayer& wanted, PackProgress& progress) {
    const auto found = std::find_if(manifest_.layers.begin(), manifest_.layers.end(),
                                    [&](const PackLayer& layer) { return layer.layer == wanted.layer; });
    if (found == manifest_.layers.end()) return false;
    std::error_code error;
    if (found->file == wanted.file && found->record_bytes == wanted.record_bytes &&
        fs::exists(path(found->file), error) &&
        compare_checksums(path(found->file), layer_bytes(*found), found->record_bytes, found->checksums, progress)
            .empty()) {
      progress.add(layer_bytes(*found));
      return true;
    }
    manifest_.layers.erase(found);
    save_manifest();
    return false;
  }

  // Experts are read and rounded a few at a time, each by one thread, and written in order.
  void write_layer(PackLayer layer, PackProgress& progress) {
    const int64_t experts = files_->shape().experts;
    const int64_t batch = std::max(settings_.thread_count, 1);
    std::vector<std::vector<uint8_t>> records(static_cast<size_t>(batch));
    ChecksummedFile out(path(layer.file), progress);
    for (int64_t begin = 0; begin < experts; begin += batch) {
      const int64_t count = std::min(batch, experts - begin);
      run_parallel(count, settings_.thread_count, [&](int64_t i) {
        fill_record(layer, begin + i, records[static_cast<size_t>(i)]);
      });
      for (int64_t i = 0; i < count; ++i) {
        const std::vector<uint8_t>& record = records[static_cast<size_t>(i)];
        layer.checksums.push_back(format::crc32c(0, record.data(), record.size()));
        out.write(record.data(), record.size());
      }
    }
    out.commit();
    need_equal(compare_checksums(path(layer.file), out.bytes(), layer.record_bytes, layer.checksums, progress));
    const auto after = std::find_if(manifest_.layers.begin(), manifest_.layers.end(),
                                    [&](const PackLayer& other) { return other.layer > layer.layer; });
    manifest_.layers.insert(after, std::move(layer));
    save_manifest();
  }

  void fill_record(const PackLayer& layer, int64_t expert, std::vector<uint8_t>& record) const {
    const auto map = files_->experts();
    std::vector<uint8_t> slot(map->slot_bytes());
    std::vector<format::Extent> extents;
    map->extents(layer.layer, expert, extents);
    for (const format::Extent& extent : extents) {
      map->files()[extent.file]->read_exact(slot.data() + extent.slot_offset, extent.bytes, extent.file_offset);
    }
    const ExpertMatrices source = map->matrices(layer.layer, expert, slot.data());
    record.assign(layer.record_bytes, 0);
    const std::string what = files_->summary().path + ": layer " + std::to_string(layer.layer) + " expert " +
                             std::to_string(expert);
    fill_matrix(source.gate, layer.gate, record.data(), what + " gate");
    fill_matrix(source.up, layer.up, record.data(), what + " up");
    fill_matrix(source.down, layer.down, record.data(), what + " down");
  }

  std::string destination_;
  PackSettings settings_;
  PackFormats formats_;
  std::unique_ptr<ModelFiles> files_;
  DenseFile dense_;
  std::vector<PackLayer> wanted_;  // without checksums
  PackManifest manifest_;
};

}  // namespace

PackResult pack_folder(const std::string& source, const std::string& destination, const PackSettings& settings,
                       const ByteProgress& progress) {
  return Packer(source, destination, settings).run(progress);
}

void verify_pack(const std::string& folder, const ByteProgress& report) {
  const auto manifest = format::read_manifest(folder);
  if (!manifest) throw ConfigError(folder + " is no pack: it has no " + format::manifest_name);
  uint64_t total = manifest->dense.bytes;
  for (const PackLayer& layer : manifest->layers) total += layer.record_bytes * layer.checksums.size();
  PackProgress progress(report, total);
  const auto need_equal = [](const std::string& difference) {
    if (!difference.empty()) throw FormatError(difference + " (the pack is damaged; pack again)");
  };
  const format::PackFile& dense = manifest->dense;
  need_equal(
      compare_checksums(folder + "/" + dense.file, dense.bytes, dense.bytes, {&dense.checksum, 1}, progress));
  for (const PackLayer& layer : manifest->layers) {
    need_equal(compare_checksums(folder + "/" + layer.file, layer.record_bytes * layer.checksums.size(),
                                 layer.record_bytes, layer.checksums, progress));
  }
}

}  // namespace flash_moe::model
