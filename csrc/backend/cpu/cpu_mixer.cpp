// Full attention and GatedDeltaNet over a block of rows (docs/MODEL.md sections 2 and 3).
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "kernels/rope.h"

namespace flash_moe::backend {
namespace {

constexpr float kL2NormEps = 1e-6f;
constexpr uint64_t kCachedStateBytes = 16 << 20;  // of all layers; more will not last in a cache from a token to the next
constexpr int64_t kConvTapsMax = 16;  // model/shape.cpp accepts no longer convolution

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// log(1 + exp(x)); above 20 the 1 is below f32's precision, and exp may overflow.
float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

// x *= scale / sqrt(sum(x^2) + eps)
void l2_normalise(float* x, int64_t n, float scale) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  const float factor = 1.0f / std::sqrt(sum + kL2NormEps);
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] * factor * scale;
}

}  // namespace

void CpuBackend::mixer(int64_t layer) {
  const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
  for (const Pass& pass : passes_) {
    normalise_and_prepare(weights.input_norm, pass.begin, pass.count, prepared_.data());
    if (shape_.layers[static_cast<size_t>(layer)].mixer == MixerKind::full_attention) {
      attention_pass(layer, pass);
    } else {
      delta_pass(layer, pass);
    }
  }
}

void CpuBackend::attention_pass(int64_t layer, const Pass& pass) {
  const AttentionWeights& weights = weights_.layers[static_cast<size_t>(layer)].attention;
  const int64_t q_width = weights.q.rows;
  const int64_t kv_width = weights.k.rows;
  const int64_t out_width = shape_.heads * shape_.head_dim;
  float* q = mixer_in_.ensure(pass.count * (q_width + 2 * kv_width));
  float* k = q + pass.count * q_width;
  float* v = k + pass.count * kv_width;
  const uint8_t* x = prepared_.data();
  const Product products[] = {{weights.q, x, nullptr, pass.count, q, q_width},
                              {weights.k, x, nullptr, pass.count, k, kv_width},
                              {weights.v, x, nullptr, pass.count, v, kv_width}};
  multiply(products);
  mixer_out_.ensure(pass.count * out_width);
  for (const Block& block : pass.blocks) {
    rotate_and_store(layer, pass, block);
    attend(layer, pass, block);
  }
  uint8_t* prepared = prepared_mid_.ensure(pass.count * static_cast<int64_t>(kernels_->prepared_bytes(out_width)));
  prepare_rows(mixer_out_.data(), out_width, out_width, pass.count, prepared);
  add_product(weights.o, prepared, pass.begin, pass.count);
}

// Norm and rotation of queries in place; of keys on their way into the cache, with the values.
void CpuBackend::rotate_and_store(int64_t layer, const Pass& pass, const Block& block) {
  const AttentionWeights& weights = weights_.layers[static_cast<size_t>(layer)].attention;
  const int64_t head_dim = shape_.head_dim;
  const int64_t q_width = weights.q.rows;
  const int64_t q_head = q_width / shape_.heads;  // head_dim, or twice that with the gate behind it
  const int64_t kv_width = weights.k.rows;
  const int64_t local = block.begin - pass.begin;
  float* q = mixer_in_.data() + local * q_width;
  float* k = mixer_in_.data() + pass.count * q_width + local * kv_width;
  const float* v = k + pass.count * kv_width;
  CpuSequence& sequence = *block.sequence;
  sequence.note_rows(block.position + block.count);
  const auto store = [&](uint8_t* cache, int64_t position, const float* x) {
    if (sequence.kv_is_bf16()) {
      kernels_->f32_to_bf16(reinterpret_cast<uint16_t*>(cache) + position * kv_width, x, kv_width);
    } else {
      std::memcpy(reinterpret_cast<float*>(cache) + position * kv_width, x,
                  static_cast<size_t>(kv_width) * sizeof(float));
    }
  };
  pool_.run(block.count, [&](int64_t row) {
    const int64_t position = block.position + row;
    const float* cos = rope_.data() + (block.begin + row) * shape_.rotary_dim;
    const float* sin = cos + shape_.rotary_dim / 2;
    for (int64_t h = 0; h < shape_.heads; ++h) {
      float* head = q + row * q_width + h * q_head;
      kernels_->rms_norm(head, head, weights.q_norm, shape_.rms_eps, head_dim);
      kernels::rope_rotate(head, cos, sin, shape_.rotary_dim);
    }
    for (int64_t h = 0; h < shape_.kv_heads; ++h) {
      float* head = k + row * kv_width + h * head_dim;
      kernels_->rms_norm(head, head, weights.k_norm, shape_.rms_eps, head_dim);
      kernels::rope_rotate(head, cos, sin, shape_.rotary_dim);
    }
    store(sequence.keys(layer), position, k + row * kv_width);
    store(sequence.values(layer), position, v + row * kv_width);
  });
}

// mixer_out_[row, head] = softmax(q k / sqrt(d)) v, times sigmoid(gate).
void CpuBackend::attend(int64_t layer, const Pass& pass, const Block& block) {
  const int64_t head_dim = shape_.head_dim;
  const int64_t q_width = weights_.layers[static_cast<size_t>(layer)].attention.q.rows;
  const int64_t q_head = q_width / shape_.heads;
  const int64_t kv_width = shape_.kv_heads * head_dim;
  const int64_t group = shape_.heads / shape_.kv_heads;
  const int64_t out_width = shape_.heads * head_dim;
  const int64_t lanes = pool_.thread_count();
  const int64_t query_floats = group * head_dim;
  const int64_t lane_floats = group * (block.position + block.count) + query_floats;
  float* scratch = attention_scores_.ensure(lanes * lane_floats);
  const float* q = mixer_in_.data() + (block.begin - pass.begin) * q_width;
  float* out = mixer_out_.data() + (block.begin - pass.begin) * out_width;
  CpuSequence& sequence = *block.sequence;
  const size_t element_bytes = sequence.kv_is_bf16() ? 2 : 4;
  // Longest rows first, so that the lanes end together.
  std::atomic<int64_t> next{0};
  const int64_t item_count = block.count * shape_.kv_heads;
  pool_.run(lanes, [&](int64_t lane) {
    float* queries = scratch + lane * lane_floats;
    for (int64_t item; (item = next.fetch_add(1)) < item_count;) {
      const int64_t row = block.count - 1 - item / shape_.kv_heads;
      const int64_t kv_head = item % shape_.kv_heads;
      const float* heads = q + row * q_width + kv_head * group * q_head;
      for (int64_t g = 0; g < group; ++g)
        std::memcpy(queries + g * head_dim, heads + g * q_head, static_cast<size_t>(head_dim) * sizeof(float));
      kernels::AttentionArgs args;
      args.q = queries;
      args.k = sequence.keys(layer) + static_cast<size_t>(kv_head * head_dim) * element_bytes;
      args.v = sequence.values(layer) + static_cast<size_t>(kv_head * head_dim) * element_bytes;
      args.kv_stride = kv_width;
      args.kv_is_bf16 = sequence.kv_is_bf16();
      args.heads_in_group = group;
      args.head_dim = head_dim;
      args.length = block.position + row + 1;
      args.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
      args.scores = queries + query_floats;
      args.out = out + row * out_width + kv_head * group * head_dim;
      kernels_->attention(args);
      if (!shape_.attention_gate) continue;
      for (int64_t g = 0; g < group; ++g) {
        const float* gate = heads + g * q_head + head_dim;
        float* y = args.out + g * head_dim;
        for (int64_t i = 0; i < head_dim; ++i) y[i] *= sigmoid(gate[i]);
      }
    }
  });
}

void CpuBackend::delta_pass(int64_t layer, const Pass& pass) {
  const DeltaNetWeights& weights = weights_.layers[static_cast<size_t>(layer)].delta_net;
  const int64_t channels = shape_.conv_channels();
  const int64_t v_width = shape_.linear_v_width();
  const int64_t v_heads = shape_.linear_v_heads;
  float* qkv = mixer_in_.ensure(pass.count * (channels + v_width + 2 * v_heads));
  float* z = qkv + pass.count * channels;
  float* b = z + pass.count * v_width;
  float* a = b + pass.count * v_heads;
  const uint8_t* x = prepared_.data();
  const Product products[] = {{weights.qkv, x, nullptr, pass.count, qkv, channels},
                              {weights.z, x, nullptr, pass.count, z, v_width},
                              {weights.b, x, nullptr, pass.count, b, v_heads},
                              {weights.a, x, nullptr, pass.count, a, v_heads}};
  multiply(products);
  mixer_mid_.ensure(pass.count * channels);
  mixer_out_.ensure(pass.count * v_width);
  for (const Block& block : pass.blocks) {
    delta_conv(layer, pass, block);
    delta_heads(layer, pass, block);
    block.sequence->mark_written(layer);
  }
  uint8_t* prepared = prepared_mid_.ensure(pass.count * static_cast<int64_t>(kernels_->prepared_bytes(v_width)));
  prepare_rows(mixer_out_.data(), v_width, v_width, pass.count, prepared);
  add_product(weights.out, prepared, pass.begin, pass.count);
}

// Convolves qkv with the rows before it, normalises q and k, and leaves the last rows as the next window.
void CpuBackend::delta_conv(int64_t layer, const Pass& pass, const Block& block) {
  const DeltaNetWeights& weights = weights_.layers[static_cast<size_t>(layer)].delta_net;
  const int64_t channels = shape_.conv_channels();
  const int64_t taps = shape_.conv_kernel;
  const float* qkv = mixer_in_.data() + (block.begin - pass.begin) * channels;
  float* convolved = mixer_mid_.data() + (block.begin - pass.begin) * channels;
  const float* before = block.sequence->conv_read(layer);
  const float q_scale = 1.0f / std::sqrt(static_cast<float>(shape_.linear_k_dim));
  const auto row_at = [&](int64_t row) {
    return row >= 0 ? qkv + row * channels : before + (row + taps - 1) * channels;
  };
  pool_.run(block.count, [&](int64_t row) {
    const float* window[kConvTapsMax];
    for (int64_t tap = 0; tap < taps; ++tap) window[tap] = row_at(row - (taps - 1) + tap);
    float* y = convolved + row * channels;
    kernels_->conv_silu(y, window, weights.conv, taps, channels);
    for (int64_t head = 0; head < shape_.linear_k_heads; ++head) {
      l2_normalise(y + head * shape_.linear_k_dim, shape_.linear_k_dim, q_scale);
      l2_normalise(y + shape_.linear_k_width() + head * shape_.linear_k_dim, shape_.linear_k_dim, 1.0f);
    }
  });
  // In ascending order a row is read before it is overwritten when both windows are the same memory.
  float* after = block.sequence->conv_write(layer);
  for (int64_t i = 0; i < taps - 1; ++i)
    std::memmove(after + i * channels, row_at(block.count - (taps - 1) + i),
                 static_cast<size_t>(channels) * sizeof(float));
}

// The recurrence, one head after another through all rows so that its state stays in cache, then norm and gate.
void CpuBackend::delta_heads(int64_t layer, const Pass& pass, const Block& block) {
  const DeltaNetWeights& weights = weights_.layers[static_cast<size_t>(layer)].delta_net;
  const int64_t channels = shape_.conv_channels();
  const int64_t k_dim = shape_.linear_k_dim;
  const int64_t v_dim = shape_.linear_v_dim;
  const int64_t v_width = shape_.linear_v_width();
  const int64_t v_heads = shape_.linear_v_heads;
  const int64_t local = block.begin - pass.begin;
  const float* z = mixer_in_.data() + pass.count * channels + local * v_width;
  const float* b = mixer_in_.data() + pass.count * (channels + v_width) + local * v_heads;
  const float* a = b + pass.count * v_heads;
  const float* convolved = mixer_mid_.data() + local * channels;
  float* out = mixer_out_.data() + local * v_width;
  const float* state_in = block.sequence->delta_read(layer);
  float* state_out = block.sequence->delta_write(layer);
  const bool past_caches = block.count == 1 && CpuSequence::delta_bytes(shape_) > kCachedStateBytes;
  pool_.run(v_heads, [&](int64_t head) {
    const int64_t k_head = head / (v_heads / shape_.linear_k_heads);
    const int64_t state_offset = head * v_dim * k_dim;
    for (int64_t row = 0; row < block.count; ++row) {
      const float* x = convolved + row * channels;
      float* y = out + row * v_width + head * v_dim;
      kernels::DeltaStepArgs args;
      args.state_in = (row == 0 ? state_in : state_out) + state_offset;
      args.state = state_out + state_offset;
      args.q = x + k_head * k_dim;
      args.k = x + shape_.linear_k_width() + k_head * k_dim;
      args.v = x + 2 * shape_.linear_k_width() + head * v_dim;
      args.decay = std::exp(-weights.decay_rate[head] * softplus(a[row * v_heads + head] + weights.dt_bias[head]));
      args.beta = sigmoid(b[row * v_heads + head]);
      args.k_dim = k_dim;
      args.v_dim = v_dim;
      args.out = y;
      args.past_caches = past_caches;
      kernels_->delta_step(args);
      kernels_->rms_norm(y, y, weights.norm, shape_.rms_eps, v_dim);
      kernels_->silu_mul(y, z + row * v_width + head * v_dim, y, v_dim);
    }
  });
}

}  // namespace flash_moe::backend
