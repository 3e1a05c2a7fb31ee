// The definition of every kernel in plain C++. The other tables give the same bits, all of them: a result has
// kLanes accumulators, input (or unit of inputs) i goes to accumulator i % kLanes in order of i with one fused
// multiply-add, and reduce() closes them.

#include <cmath>

#include "kernels/reference_values.h"

namespace flash_moe::kernels {
namespace {

using namespace reference;

float reduce(float lanes[kLanes]) {
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  }
  return lanes[0];
}

float dot(const float* a, const float* b, int64_t n) {
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i % kLanes] = std::fma(a[i], b[i], lanes[i % kLanes]);
  return reduce(lanes);
}

// e^x to 1.2 ulp between -87.3 and 88, constant beyond; NaN stays NaN. The exponent is taken from the bits of
// a sum with 1.5 * 2^23, so that nothing converts an out-of-range float to an integer.
float exp_f32(float x) {
  constexpr float kMagic = 12582912.0f;
  float t = 88.0f < x ? 88.0f : x;
  t = -87.3f > t ? -87.3f : t;
  const float shifted = std::fma(t, 0x1.715476p+0f, kMagic);
  const float n = shifted - kMagic;
  float r = std::fma(n, -0x1.62e400p-1f, t);
  r = std::fma(n, -0x1.7f7d1cp-20f, r);
  float p = 0x1.6a23cep-10f;
  p = std::fma(p, r, 0x1.123a20p-7f);
  p = std::fma(p, r, 0x1.5558f2p-5f);
  p = std::fma(p, r, 0x1.555492p-3f);
  p = std::fma(p, r, 0x1.fffffcp-2f);
  p = std::fma(p, r, 1.0f);
  p = std::fma(p, r, 1.0f);
  const uint32_t power = (std::bit_cast<uint32_t>(shifted) + 127u) << 23;
  return p * std::bit_cast<float>(power);
}

float silu(float x) { return x / (1.0f + exp_f32(-x)); }

constexpr size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// A fast row: f32 [cols], then int16 [cols], then one f32 scale for each 64 inputs.
struct FastRow {
  const float* x;
  const int16_t* codes;
  const float* scales;
};

size_t codes_at(int64_t cols) { return round_up(static_cast<size_t>(cols) * 4, 64); }
size_t scales_at(int64_t cols) { return codes_at(cols) + round_up(static_cast<size_t>(cols) * 2, 64); }

size_t prepared_bytes_float32(int64_t cols) { return codes_at(cols); }

size_t prepared_bytes_fast(int64_t cols) {
  const auto blocks = static_cast<size_t>((cols + kRowBlock - 1) / kRowBlock);
  return scales_at(cols) + round_up(blocks * 4, 64);
}

void prepare_row_float32(const float* x, int64_t cols, uint8_t* dst) {
  std::memcpy(dst, x, static_cast<size_t>(cols) * 4);
}

// Codes of up to 64 inputs; returns their scale. A block with a NaN or an infinity has the scale NaN, one
// whose largest magnitude is below 2^-100 the scale 0.
float encode_block(const float* x, int64_t n, int16_t* codes) {
  uint32_t max_bits = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
    if (bits > max_bits) max_bits = bits;
  }
  const auto max = std::bit_cast<float>(max_bits);
  const bool usable = max_bits < 0x7f800000u && max >= 0x1p-100f;
  const float inverse = usable ? kRowCodeMax / max : 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    codes[i] = usable ? static_cast<int16_t>(std::lrint(x[i] * inverse)) : int16_t{0};
  }
  if (max_bits >= 0x7f800000u) return std::bit_cast<float>(0x7fc00000u);
  return usable ? max / kRowCodeMax : 0.0f;
}

void prepare_row_fast(const float* x, int64_t cols, uint8_t* dst) {
  std::memcpy(dst, x, static_cast<size_t>(cols) * 4);
  auto* codes = reinterpret_cast<int16_t*>(dst + codes_at(cols));
  auto* scales = reinterpret_cast<float*>(dst + scales_at(cols));
  for (int64_t begin = 0; begin < cols; begin += kRowBlock) {
    const int64_t n = cols - begin < kRowBlock ? cols - begin : kRowBlock;
    scales[begin / kRowBlock] = encode_block(x + begin, n, codes + begin);
  }
}

float dot_float(const Matrix& m, int64_t row, const float* x) {
  float lanes[kLanes] = {};
  for (int64_t i = 0; i < m.cols; ++i) {
    lanes[i % kLanes] = std::fma(x[i], element(m, row, i), lanes[i % kLanes]);
  }
  return reduce(lanes);
}

// A unit is 64 inputs, or the matrix's group where that is smaller: within it the sums are exact integers.
float dot_integer(const Matrix& m, int64_t row, const FastRow& x) {
  const int64_t unit = m.group < kRowBlock ? m.group : kRowBlock;
  float lanes[kLanes] = {};
  for (int64_t begin = 0; begin < m.cols; begin += unit) {
    const int64_t end = begin + unit < m.cols ? begin + unit : m.cols;
    int32_t sum = 0;
    int32_t code_sum = 0;
    for (int64_t i = begin; i < end; ++i) {
      sum += static_cast<int32_t>(integer_code(m, row, i)) * x.codes[i];
      code_sum += x.codes[i];
    }
    const float x_scale = x.scales[begin / kRowBlock];
    const ScaleAndBias w = group_scale(m, row, begin / m.group);
    float& lane = lanes[(begin / unit) % kLanes];
    lane = std::fma(static_cast<float>(sum), w.scale * x_scale, lane);
    lane = std::fma(w.bias, static_cast<float>(code_sum) * x_scale, lane);
  }
  return reduce(lanes);
}

template <Precision precision>
void matmul(const MatmulArgs& args) {
  const Matrix& m = args.matrix;
  const bool integer = precision == Precision::fast && has_integer_codes(m);
  for (int64_t r = 0; r < args.row_count; ++r) {
    const int64_t from = args.x_rows ? args.x_rows[r] : r;
    const uint8_t* row = args.x + static_cast<size_t>(from) * args.x_stride;
    const FastRow x{reinterpret_cast<const float*>(row), reinterpret_cast<const int16_t*>(row + codes_at(m.cols)),
                    reinterpret_cast<const float*>(row + scales_at(m.cols))};
    for (int64_t o = args.out_begin; o < args.out_end; ++o) {
      args.y[r * args.y_stride + o] = integer ? dot_integer(m, o, x) : dot_float(m, o, x.x);
    }
  }
}

void rms_norm(float* y, const float* x, const float* weight, float eps, int64_t n) {
  const float scale = 1.0f / std::sqrt(dot(x, x, n) / static_cast<float>(n) + eps);
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * scale * weight[i];
}

void silu_mul(float* y, const float* gate, const float* up, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = silu(gate[i]) * up[i];
}

void axpy(float* y, const float* x, float scale, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = std::fma(scale, x[i], y[i]);
}

float kv_element(const AttentionArgs& a, const void* base, int64_t position, int64_t i) {
  const int64_t at = position * a.kv_stride + i;
  return a.kv_is_bf16 ? bf16_to_f32(static_cast<const uint16_t*>(base)[at]) : static_cast<const float*>(base)[at];
}

// Values are summed in blocks of 64 positions, so that the rounding error does not grow with the length.
void attention_head(const AttentionArgs& a, const float* q, float* scores, float* out) {
  float max = -INFINITY;
  for (int64_t p = 0; p < a.length; ++p) {
    float lanes[kLanes] = {};
    for (int64_t i = 0; i < a.head_dim; ++i) {
      lanes[i % kLanes] = std::fma(q[i], kv_element(a, a.k, p, i), lanes[i % kLanes]);
    }
    scores[p] = reduce(lanes) * a.scale;
    if (scores[p] > max) max = scores[p];
  }
  float sums[kLanes] = {};
  for (int64_t p = 0; p < a.length; ++p) {
    scores[p] = exp_f32(scores[p] - max);
    sums[p % kLanes] += scores[p];
  }
  const float inverse = 1.0f / reduce(sums);
  for (int64_t i = 0; i < a.head_dim; ++i) {
    float total = 0;
    for (int64_t begin = 0; begin < a.length; begin += 64) {
      const int64_t end = begin + 64 < a.length ? begin + 64 : a.length;
      float part = 0;
      for (int64_t p = begin; p < end; ++p) part = std::fma(scores[p], kv_element(a, a.v, p, i), part);
      total += part;
    }
    out[i] = total * inverse;
  }
}

void attention(const AttentionArgs& a) {
  for (int64_t h = 0; h < a.heads_in_group; ++h) {
    attention_head(a, a.q + h * a.head_dim, a.scores + h * a.length, a.out + h * a.head_dim);
  }
}

void conv_silu(float* out, const float* const* window, const float* weight, int64_t taps, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) {
    float sum = 0;
    for (int64_t j = 0; j < taps; ++j) sum = std::fma(window[j][c], weight[j * channels + c], sum);
    out[c] = silu(sum);
  }
}

void delta_step(const DeltaStepArgs& a) {
  for (int64_t row = 0; row < a.v_dim; ++row) {
    const float* before = a.state_in + row * a.k_dim;
    float* s = a.state + row * a.k_dim;
    for (int64_t i = 0; i < a.k_dim; ++i) s[i] = before[i] * a.decay;
    const float delta = (a.v[row] - dot(s, a.k, a.k_dim)) * a.beta;
    for (int64_t i = 0; i < a.k_dim; ++i) s[i] = std::fma(delta, a.k[i], s[i]);
    a.out[row] = dot(s, a.q, a.k_dim);
  }
}

void convert_to_bf16(uint16_t* y, const float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = f32_to_bf16(x[i]);
}

void dequantise_row(float* y, const Matrix& matrix, int64_t row) {
  for (int64_t i = 0; i < matrix.cols; ++i) y[i] = element(matrix, row, i);
}

constexpr Kernels make_table(Precision precision) {
  const bool fast = precision == Precision::fast;
  return {.name = "reference",
          .precision = precision,
          .prepared_bytes = fast ? prepared_bytes_fast : prepared_bytes_float32,
          .prepare_row = fast ? prepare_row_fast : prepare_row_float32,
          .matmul = fast ? matmul<Precision::fast> : matmul<Precision::float32>,
          .rms_norm = rms_norm,
          .silu_mul = silu_mul,
          .axpy = axpy,
          .attention = attention,
          .conv_silu = conv_silu,
          .delta_step = delta_step,
          .f32_to_bf16 = convert_to_bf16,
          .dequantise_row = dequantise_row};
}

constexpr Kernels kFloat32 = make_table(Precision::float32);
constexpr Kernels kFast = make_table(Precision::fast);

}  // namespace

const Kernels& reference_kernels(Precision precision) {
  return precision == Precision::fast ? kFast : kFloat32;
}

}  // namespace flash_moe::kernels
