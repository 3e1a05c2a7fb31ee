// Full attention and GatedDeltaNet over a block of rows (docs/MODEL.md sections 2 and 3).
#include <algorithm>
#include <cmath>

#import "backend/metal/metal_backend.h"

namespace flash_moe::backend {
namespace {

constexpr float kL2NormEps = 1e-6f;
constexpr int64_t kAlignFloats = 16;                      // rows that kernels read begin there
constexpr int64_t kPartialFloatsMax = int64_t{16} << 20;  // 64 MiB of attention's partial results


// Places arrays of rows one behind the other.
class RowLayout {
 public:
  explicit RowLayout(int64_t row_count) : row_count_(row_count) {}
  int64_t add(int64_t width) {
    const int64_t at = floats_;
    floats_ += (row_count_ * width + kAlignFloats - 1) / kAlignFloats * kAlignFloats;
    return at;
  }
  int64_t floats() const { return floats_; }

 private:
  int64_t row_count_;
  int64_t floats_ = 0;
};

}  // namespace

void MetalBackend::mixer(int64_t layer) {
  commands_->barrier();
  if (normed_layer_ != layer) {
    const Layer& weights = layers_[static_cast<size_t>(layer)];
    normalise(weights.input_norm, hidden_rows(), row_count_, {x_.buffer(), 0, shape_.hidden});
    commands_->barrier();
  }
  for (const Pass& pass : passes_) {
    commands_->barrier();  // the passes share their scratch
    if (shape_.layers[static_cast<size_t>(layer)].mixer == MixerKind::full_attention) {
      attention_pass(layer, pass);
    } else {
      delta_pass(layer, pass);
    }
  }
}

MetalBackend::MixerRows MetalBackend::attention_rows(int64_t layer, const Pass& pass) {
  const AttentionMatrices& weights = layers_[static_cast<size_t>(layer)].attention;
  RowLayout layout(pass.count);
  const int64_t q = layout.add(weights.q.rows);
  const int64_t k = layout.add(weights.k.rows);
  const int64_t v = layout.add(weights.v.rows);
  MetalBuffer in = mixer_in_.ensure(*device_, layout.floats());
  const int64_t out_width = shape_.heads * shape_.head_dim;
  MixerRows rows;
  rows.q = {in, q, weights.q.rows};
  rows.k = {in, k, weights.k.rows};
  rows.v = {in, v, weights.v.rows};
  rows.out = {mixer_out_.ensure(*device_, pass.count * out_width), 0, out_width};
  return rows;
}

void MetalBackend::attention_pass(int64_t layer, const Pass& pass) {
  const AttentionMatrices& weights = layers_[static_cast<size_t>(layer)].attention;
  const MixerRows rows = attention_rows(layer, pass);
  const MetalRows x{x_.buffer(), pass.begin * shape_.hidden, shape_.hidden};
  multiply(weights.q, x, pass.count, rows.q);
  multiply(weights.k, x, pass.count, rows.k);
  multiply(weights.v, x, pass.count, rows.v);
  commands_->barrier();
  for (const Block& block : pass.blocks) rotate_and_store(layer, pass, block, rows);
  commands_->barrier();
  attend(layer, pass, rows);
  commands_->barrier();
  multiply(weights.o, rows.out, pass.count, hidden_rows(pass.begin), true);
}

// Norm and rotation of queries in place; of keys on their way into the cache, with the values.
void MetalBackend::rotate_and_store(int64_t layer, const Pass& pass, const Block& block, const MixerRows& rows) {
  namespace b = metal::buffers::qk_norm_rope_append;
  const AttentionMatrices& weights = layers_[static_cast<size_t>(layer)].attention;
  const int64_t local = block.begin - pass.begin;
  commands_->use(kernels_.qk_norm_rope_append);
  commands_->bind(b::q, rows.q.at(local));
  commands_->bind(b::k, rows.k.at(local));
  commands_->bind(b::v, rows.v.at(local));
  commands_->bind(b::q_norm, weights.q_norm);
  commands_->bind(b::k_norm, weights.k_norm);
  commands_->bind(b::angles, angles_.buffer(), static_cast<size_t>(block.begin * shape_.rotary_dim) * sizeof(float));
  commands_->bind(b::keys, block.sequence->keys(layer));
  commands_->bind(b::values, block.sequence->values(layer));
  commands_->bind_args(b::args, metal::RopeArgs{to_u32(shape_.heads), to_u32(shape_.kv_heads), to_u32(shape_.head_dim),
                                                to_u32(shape_.rotary_dim), weights.q.rows,
                                                weights.q.rows / to_u32(shape_.heads), weights.k.rows,
                                                to_u32(block.position), shape_.rms_eps});
  commands_->dispatch_groups({static_cast<size_t>(shape_.heads + 2 * shape_.kv_heads), static_cast<size_t>(block.count)},
                             metal::head_threads);
}

metal::AttentionArgs MetalBackend::attention_args(int64_t layer, int64_t position, int64_t row_count) const {
  const AttentionMatrices& weights = layers_[static_cast<size_t>(layer)].attention;
  return {to_u32(shape_.heads),
          to_u32(shape_.kv_heads),
          weights.q.rows,
          weights.q.rows / to_u32(shape_.heads),
          weights.k.rows,
          to_u32(position),
          to_u32(row_count),
          static_cast<uint32_t>(groups_of(position + row_count, metal::attention_split)),
          1.0f / std::sqrt(static_cast<float>(shape_.head_dim))};
}

// Parts are computed together as long as their partial results fit.
void MetalBackend::attend(int64_t layer, const Pass& pass, const MixerRows& rows) {
  parts_.clear();
  int64_t partials = 0;
  int64_t stats = 0;
  const auto flush = [&] {
    if (parts_.empty()) return;
    attend_parts(layer, pass, rows, parts_);
    commands_->barrier();  // the next ones use the same memory
    parts_.clear();
    partials = stats = 0;
  };
  for (const Block& block : pass.blocks) {
    if (is_wide()) {
      attend_wide(layer, pass, block, rows);
      continue;
    }
    const auto splits = static_cast<int64_t>(groups_of(block.position + block.count, metal::attention_split));
    const int64_t row_floats = shape_.heads * splits * shape_.head_dim;
    for (int64_t first = 0; first < block.count;) {
      if (partials + row_floats > kPartialFloatsMax) flush();
      const int64_t fitting = std::max<int64_t>((kPartialFloatsMax - partials) / row_floats, 1);
      const int64_t count = std::min(fitting, block.count - first);
      parts_.push_back({&block, first, count, splits, partials, stats});
      partials += count * row_floats;
      stats += (count * shape_.heads * splits * 2 + kAlignFloats - 1) / kAlignFloats * kAlignFloats;
      first += count;
    }
  }
  flush();
}

// out[row, head] = softmax(q k / sqrt(d)) v, times sigmoid(gate): splits of the positions first, then their sum.
void MetalBackend::attend_parts(int64_t layer, const Pass& pass, const MixerRows& rows, std::span<const AttentionPart> parts) {
  const AttentionPart& last = parts.back();
  const int64_t last_floats = last.count * shape_.heads * last.split_count;
  MetalBuffer partials = partials_.ensure(*device_, last.partials + last_floats * shape_.head_dim);
  MetalBuffer stats = stats_.ensure(*device_, last.stats + last_floats * 2);
  for (const AttentionPart& part : parts) {
    namespace b = metal::buffers::attention_decode;
    const Block& block = *part.block;
    metal::AttentionArgs args = attention_args(layer, block.position + part.first, part.count);
    args.split_count = to_u32(part.split_count);
    commands_->use(kernels_.attention_decode);
    commands_->bind(b::q, rows.q.at(block.begin - pass.begin + part.first));
    commands_->bind(b::keys, block.sequence->keys(layer));
    commands_->bind(b::values, block.sequence->values(layer));
    commands_->bind(b::partials, partials, static_cast<size_t>(part.partials) * sizeof(float));
    commands_->bind(b::stats, stats, static_cast<size_t>(part.stats) * sizeof(float));
    commands_->bind_args(b::args, args);
    commands_->dispatch_groups({static_cast<size_t>(shape_.heads), static_cast<size_t>(part.split_count),
                                static_cast<size_t>(part.count)},
                               metal::attention_threads);
  }
  commands_->barrier();
  for (const AttentionPart& part : parts) {
    namespace b = metal::buffers::attention_merge;
    const int64_t row = part.block->begin - pass.begin + part.first;
    metal::AttentionArgs args = attention_args(layer, part.block->position + part.first, part.count);
    args.split_count = to_u32(part.split_count);
    commands_->use(kernels_.attention_merge);
    commands_->bind(b::q, rows.q.at(row));
    commands_->bind(b::partials, partials, static_cast<size_t>(part.partials) * sizeof(float));
    commands_->bind(b::stats, stats, static_cast<size_t>(part.stats) * sizeof(float));
    commands_->bind(b::out, rows.out.at(row));
    commands_->bind_args(b::args, args);
    commands_->dispatch_groups({static_cast<size_t>(shape_.heads), static_cast<size_t>(part.count)}, metal::head_threads);
  }
}

void MetalBackend::attend_wide(int64_t layer, const Pass& pass, const Block& block, const MixerRows& rows) {
  namespace b = metal::buffers::attention_prefill;
  const int64_t local = block.begin - pass.begin;
  commands_->use(kernels_.attention_prefill);
  commands_->bind(b::q, rows.q.at(local));
  commands_->bind(b::keys, block.sequence->keys(layer));
  commands_->bind(b::values, block.sequence->values(layer));
  commands_->bind(b::out, rows.out.at(local));
  commands_->bind_args(b::args, attention_args(layer, block.position, block.count));
  commands_->dispatch_groups({static_cast<size_t>(shape_.heads), groups_of(block.count, metal::prefill_rows)},
                             metal::prefill_threads);
}

MetalBackend::MixerRows MetalBackend::delta_rows(const Pass& pass) {
  const int64_t channels = shape_.conv_channels();
  const int64_t v_width = shape_.linear_v_width();
  const int64_t v_heads = shape_.linear_v_heads;
  RowLayout layout(pass.count);
  const int64_t qkv = layout.add(channels);
  const int64_t z = layout.add(v_width);
  const int64_t b = layout.add(v_heads);
  const int64_t a = layout.add(v_heads);
  const int64_t convolved = layout.add(channels);
  MetalBuffer in = mixer_in_.ensure(*device_, layout.floats());
  MixerRows rows;
  rows.qkv = {in, qkv, channels};
  rows.z = {in, z, v_width};
  rows.b = {in, b, v_heads};
  rows.a = {in, a, v_heads};
  rows.convolved = {in, convolved, channels};
  rows.out = {mixer_out_.ensure(*device_, pass.count * v_width), 0, v_width};
  return rows;
}

void MetalBackend::delta_pass(int64_t layer, const Pass& pass) {
  const DeltaMatrices& weights = layers_[static_cast<size_t>(layer)].delta_net;
  const MixerRows rows = delta_rows(pass);
  const MetalRows x{x_.buffer(), pass.begin * shape_.hidden, shape_.hidden};
  multiply(weights.qkv, x, pass.count, rows.qkv);
  multiply(weights.z, x, pass.count, rows.z);
  multiply(weights.b, x, pass.count, rows.b);
  multiply(weights.a, x, pass.count, rows.a);
  commands_->barrier();
  for (const Block& block : pass.blocks) delta_conv(layer, pass, block, rows);
  commands_->barrier();
  metal::DeltaArgs args{to_u32(pass.count),          to_u32(shape_.linear_k_heads), to_u32(shape_.linear_v_heads),
                        to_u32(shape_.linear_k_dim), to_u32(shape_.linear_v_dim),   to_u32(shape_.conv_channels()),
                        kL2NormEps};
  {
    namespace b = metal::buffers::delta_qk_norm;
    commands_->use(kernels_.delta_qk_norm);
    commands_->bind(b::qkv, rows.convolved.at());
    commands_->bind_args(b::args, args);
    commands_->dispatch_groups({static_cast<size_t>(2 * shape_.linear_k_heads), static_cast<size_t>(pass.count)},
                               metal::head_threads);
  }
  commands_->barrier();
  for (const Block& block : pass.blocks) {
    delta_heads(layer, pass, block, rows);
    block.sequence->mark_written(layer);
  }
  commands_->barrier();
  {
    namespace b = metal::buffers::gated_norm;
    args.eps = shape_.rms_eps;
    commands_->use(kernels_.gated_norm);
    commands_->bind(b::o, rows.out.at());
    commands_->bind(b::z, rows.z.at());
    commands_->bind(b::weight, weights.norm);
    commands_->bind(b::y, rows.out.at());
    commands_->bind_args(b::args, args);
    commands_->dispatch_groups({static_cast<size_t>(shape_.linear_v_heads), static_cast<size_t>(pass.count)},
                               metal::head_threads);
  }
  commands_->barrier();
  multiply(weights.out, rows.out, pass.count, hidden_rows(pass.begin), true);
}

// Convolves qkv with the rows before it, and leaves the last rows as the next window.
void MetalBackend::delta_conv(int64_t layer, const Pass& pass, const Block& block, const MixerRows& rows) {
  namespace b = metal::buffers::conv_silu;
  const int64_t local = block.begin - pass.begin;
  commands_->use(kernels_.conv_silu);
  commands_->bind(b::qkv, rows.qkv.at(local));
  commands_->bind(b::window_in, block.sequence->conv_read(layer));
  commands_->bind(b::window_out, block.sequence->conv_write(layer));
  commands_->bind(b::weight, layers_[static_cast<size_t>(layer)].delta_net.conv);
  commands_->bind(b::y, rows.convolved.at(local));
  commands_->bind_args(b::args, metal::ConvArgs{to_u32(shape_.conv_channels()), to_u32(shape_.conv_kernel), to_u32(block.count)});
  commands_->dispatch_threads({static_cast<size_t>(shape_.conv_channels())}, {64});
}

// The recurrence over the block's rows.
void MetalBackend::delta_heads(int64_t layer, const Pass& pass, const Block& block, const MixerRows& rows) {
  namespace b = metal::buffers::gated_delta;
  const DeltaMatrices& weights = layers_[static_cast<size_t>(layer)].delta_net;
  const int64_t local = block.begin - pass.begin;
  commands_->use(kernels_.gated_delta);
  commands_->bind(b::qkv, rows.convolved.at(local));
  commands_->bind(b::a, rows.a.at(local));
  commands_->bind(b::b, rows.b.at(local));
  commands_->bind(b::decay_rate, weights.decay_rate);
  commands_->bind(b::dt_bias, weights.dt_bias);
  commands_->bind(b::state_in, block.sequence->delta_read(layer));
  commands_->bind(b::state_out, block.sequence->delta_write(layer));
  commands_->bind(b::out, rows.out.at(local));
  commands_->bind_args(b::args, metal::DeltaArgs{to_u32(block.count), to_u32(shape_.linear_k_heads),
                                                 to_u32(shape_.linear_v_heads), to_u32(shape_.linear_k_dim),
                                                 to_u32(shape_.linear_v_dim), to_u32(shape_.conv_channels()), kL2NormEps});
  commands_->dispatch_groups({groups_of(shape_.linear_v_dim, metal::delta_rows), static_cast<size_t>(shape_.linear_v_heads)},
                             metal::delta_threads);
}

}  // namespace flash_moe::backend
