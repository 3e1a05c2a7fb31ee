#import "backend/metal/metal_sequence.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace flash_moe::backend {
namespace {

constexpr int64_t kGrowthRows = 1024;

int64_t reserved_for(const ModelShape& shape, int64_t position) {
  return std::min((position + kGrowthRows - 1) / kGrowthRows * kGrowthRows, std::max<int64_t>(shape.context, position));
}
size_t kv_row_bytes(const ModelShape& shape, bool kv_is_bf16) {
  return static_cast<size_t>(shape.kv_heads * shape.head_dim) * (kv_is_bf16 ? 2 : 4);
}
size_t conv_bytes(const ModelShape& shape) {
  return static_cast<size_t>((shape.conv_kernel - 1) * shape.conv_channels()) * sizeof(float);
}
size_t delta_bytes(const ModelShape& shape) {
  return static_cast<size_t>(shape.linear_v_heads * shape.linear_v_dim * shape.linear_k_dim) * sizeof(float);
}
uint8_t* contents(MetalBuffer buffer) { return static_cast<uint8_t*>(buffer.contents); }

}  // namespace

MetalSequence::MetalSequence(std::shared_ptr<MetalCommands> commands, const ModelShape& shape, bool kv_is_bf16)
    : commands_(std::move(commands)), shape_(shape), kv_is_bf16_(kv_is_bf16), layers_(shape.layers.size()) {
  MetalDevice& device = commands_->device();
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (shape.layers[i].mixer == MixerKind::full_attention) continue;
    for (int copy = 0; copy < 2; ++copy) {
      layers_[i].conv[copy] = device.new_buffer(conv_bytes(shape));
      layers_[i].delta[copy] = device.new_buffer(delta_bytes(shape));
    }
  }
}

uint64_t MetalSequence::bytes_at(const ModelShape& shape, bool kv_is_bf16, int64_t position) {
  uint64_t bytes = 0;
  for (const LayerShape& layer : shape.layers) {
    if (layer.mixer == MixerKind::full_attention) {
      bytes += 2 * static_cast<uint64_t>(reserved_for(shape, position)) * kv_row_bytes(shape, kv_is_bf16);
    } else {
      bytes += 2 * (conv_bytes(shape) + delta_bytes(shape)) + 4 * kMetalPageBytes;
    }
  }
  return bytes;
}

uint64_t MetalSequence::bytes() const { return bytes_at(shape_, kv_is_bf16_, reserved_); }

void MetalSequence::reserve(int64_t position) {
  if (position <= reserved_) return;
  const int64_t rows = reserved_for(shape_, position);
  const auto bytes = static_cast<size_t>(rows) * kv_row_bytes(shape_, kv_is_bf16_);
  const auto used = static_cast<size_t>(position_) * kv_row_bytes(shape_, kv_is_bf16_);
  if (used != 0) commands_->finish();
  for (Layer& layer : layers_) {
    if (layer.delta[0]) continue;
    for (MetalBuffer __strong* cache : {&layer.keys, &layer.values}) {
      MetalBuffer larger = commands_->device().new_buffer(bytes);
      if (used != 0) std::memcpy(contents(larger), contents(*cache), used);
      *cache = larger;
    }
  }
  reserved_ = rows;
}

MetalBuffer MetalSequence::conv_read(int64_t layer) const {
  const Layer& l = layers_[static_cast<size_t>(layer)];
  return l.conv[l.written ? 1 - l.committed : l.committed];
}
MetalBuffer MetalSequence::delta_read(int64_t layer) const {
  const Layer& l = layers_[static_cast<size_t>(layer)];
  return l.delta[l.written ? 1 - l.committed : l.committed];
}
MetalBuffer MetalSequence::conv_write(int64_t layer) const {
  const Layer& l = layers_[static_cast<size_t>(layer)];
  return l.conv[1 - l.committed];
}
MetalBuffer MetalSequence::delta_write(int64_t layer) const {
  const Layer& l = layers_[static_cast<size_t>(layer)];
  return l.delta[1 - l.committed];
}

void MetalSequence::commit() {
  committed_position_ = position_;
  for (Layer& layer : layers_) {
    if (layer.written) layer.committed = 1 - layer.committed;
    layer.written = false;
  }
}

void MetalSequence::rollback() {
  position_ = committed_position_;
  for (Layer& layer : layers_) layer.written = false;
}

std::unique_ptr<Sequence> MetalSequence::fork() const {
  FM_CHECK(position_ == committed_position_);
  auto copy = std::make_unique<MetalSequence>(commands_, shape_, kv_is_bf16_);
  // visit() only reads through the pointers it hands out; the sequence itself is not changed by it.
  std::vector<std::pair<uint8_t*, size_t>> from;
  const_cast<MetalSequence*>(this)->visit(
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

void MetalSequence::visit(const Visitor& visitor) {
  commands_->finish();
  const size_t kv_bytes = static_cast<size_t>(position_) * kv_row_bytes(shape_, kv_is_bf16_);
  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer& layer = layers_[i];
    const std::string name = "layer." + std::to_string(i) + ".";
    if (!layer.delta[0]) {
      visitor(name + "keys", layer.keys ? contents(layer.keys) : nullptr, kv_bytes);
      visitor(name + "values", layer.values ? contents(layer.values) : nullptr, kv_bytes);
    } else {
      visitor(name + "conv", contents(layer.conv[layer.committed]), conv_bytes(shape_));
      visitor(name + "delta", contents(layer.delta[layer.committed]), delta_bytes(shape_));
    }
  }
}

void MetalSequence::resize(int64_t position) {
  FM_CHECK(position >= 0 && position <= shape_.context);
  rollback();
  reserve(position);
  position_ = committed_position_ = position;
}

}  // namespace flash_moe::backend
