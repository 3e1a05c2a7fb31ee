#include "backend/cpu/cpu_sequence.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace flash_moe::backend {
namespace {

size_t kv_row_bytes(const ModelShape& shape, bool kv_is_bf16) {
  return static_cast<size_t>(shape.kv_heads * shape.head_dim) * (kv_is_bf16 ? 2 : 4);
}
size_t conv_bytes(const ModelShape& shape) {
  return static_cast<size_t>((shape.conv_kernel - 1) * shape.conv_channels()) * sizeof(float);
}
size_t layer_delta_bytes(const ModelShape& shape) {
  return static_cast<size_t>(shape.linear_v_heads * shape.linear_v_dim * shape.linear_k_dim) * sizeof(float);
}

}  // namespace

CpuSequence::CpuSequence(const ModelShape& shape, bool kv_is_bf16)
    : shape_(shape), kv_is_bf16_(kv_is_bf16), layers_(shape.layers.size()) {
  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    if (shape.layers[i].mixer == MixerKind::full_attention) {
      // Address space for the whole context; pages are taken as rows are written, so growing never copies.
      const size_t bytes = static_cast<size_t>(shape.context) * kv_row_bytes(shape, kv_is_bf16);
      layer.keys = std::make_unique<AlignedMemory>(bytes);
      layer.values = std::make_unique<AlignedMemory>(bytes);
      continue;
    }
    for (int copy = 0; copy < 2; ++copy) {
      layer.conv[copy] = std::make_unique<AlignedMemory>(std::max<size_t>(conv_bytes(shape), 1));
      layer.delta[copy] = std::make_unique<AlignedMemory>(layer_delta_bytes(shape), HugePages::if_possible);
    }
  }
}

uint64_t CpuSequence::bytes_at(const ModelShape& shape, bool kv_is_bf16, int64_t position) {
  uint64_t bytes = 0;
  for (const LayerShape& layer : shape.layers) {
    if (layer.mixer == MixerKind::full_attention) {
      bytes += 2 * static_cast<uint64_t>(position) * kv_row_bytes(shape, kv_is_bf16) + 2 * 4096;
    } else {
      bytes += 2 * (conv_bytes(shape) + layer_delta_bytes(shape)) + 4 * 4096;
    }
  }
  return bytes;
}

uint64_t CpuSequence::delta_bytes(const ModelShape& shape) {
  const auto is_delta = [](const LayerShape& layer) { return layer.mixer != MixerKind::full_attention; };
  return static_cast<uint64_t>(std::count_if(shape.layers.begin(), shape.layers.end(), is_delta)) * layer_delta_bytes(shape);
}

const float* CpuSequence::conv_read(int64_t layer) const {
  const Layer& l = layers_[static_cast<size_t>(layer)];
  return reinterpret_cast<const float*>(l.conv[l.written ? 1 - l.committed : l.committed]->data());
}
const float* CpuSequence::delta_read(int64_t layer) const {
  const Layer& l = layers_[static_cast<size_t>(layer)];
  return reinterpret_cast<const float*>(l.delta[l.written ? 1 - l.committed : l.committed]->data());
}
float* CpuSequence::conv_write(int64_t layer) {
  Layer& l = layers_[static_cast<size_t>(layer)];
  return reinterpret_cast<float*>(l.conv[1 - l.committed]->data());
}
float* CpuSequence::delta_write(int64_t layer) {
  Layer& l = layers_[static_cast<size_t>(layer)];
  return reinterpret_cast<float*>(l.delta[1 - l.committed]->data());
}

void CpuSequence::advance(int64_t rows) {
  position_ += rows;
  note_rows(position_);
}

void CpuSequence::note_rows(int64_t rows) { kv_rows_max_ = std::max(kv_rows_max_, rows); }

void CpuSequence::commit() {
  committed_position_ = position_;
  for (Layer& layer : layers_) {
    if (layer.written) layer.committed = 1 - layer.committed;
    layer.written = false;
  }
}

void CpuSequence::rollback() {
  position_ = committed_position_;
  for (Layer& layer : layers_) layer.written = false;
}

std::unique_ptr<Sequence> CpuSequence::fork() const {
  FM_CHECK(position_ == committed_position_);
  auto copy = std::make_unique<CpuSequence>(shape_, kv_is_bf16_);
  // visit() only reads through the pointers it hands out; the sequence itself is not changed by it.
  std::vector<std::pair<uint8_t*, size_t>> from;
  const_cast<CpuSequence*>(this)->visit(
      [&](const std::string&, uint8_t* data, size_t bytes) { from.emplace_back(data, bytes); });
  copy->resize(position_);
  size_t next = 0;
  copy->visit([&](const std::string&, uint8_t* data, size_t bytes) {
    FM_CHECK(from[next].second == bytes);
    if (bytes != 0) std::memcpy(data, from[next].first, bytes);
    ++next;
  });
  return copy;
}

void CpuSequence::visit(const Visitor& visitor) {
  const size_t kv_bytes = static_cast<size_t>(position_) * kv_row_bytes(shape_, kv_is_bf16_);
  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    const std::string name = "layer." + std::to_string(i) + ".";
    if (layer.keys) {
      visitor(name + "keys", layer.keys->data(), kv_bytes);
      visitor(name + "values", layer.values->data(), kv_bytes);
    } else {
      visitor(name + "conv", layer.conv[layer.committed]->data(), conv_bytes(shape_));
      visitor(name + "delta", layer.delta[layer.committed]->data(), layer_delta_bytes(shape_));
    }
  }
}

void CpuSequence::resize(int64_t position) {
  FM_CHECK(position >= 0 && position <= shape_.context);
  rollback();
  position_ = committed_position_ = position;
  note_rows(position);
}

}  // namespace flash_moe::backend
