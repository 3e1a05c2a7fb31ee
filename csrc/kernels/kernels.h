#pragma once
// The table of CPU kernels: shapes and contracts. kernels/reference.cpp defines what correct means;
// each ISA file fills the same table and dispatch.cpp picks one at run time.
//
// DESIGN: exactness. On one ISA and one activation precision, every element of every result is computed by
// one fixed sequence of operations that depends only on the element's own inputs and the model's dimensions.
// So a product of T rows gives each row the bits that it has alone, and any split of output rows over
// threads gives the same bits. Reductions over a row use a lane structure fixed by the ISA file, never one that
// depends on row_count, on out_begin or on alignment. All tables share one order (reference.cpp), so they give equal bits
// too: which table runs never changes a token. One with another order says so and runs only where it is asked for.
// All functions are thread-safe on disjoint outputs; none allocates, throws or logs.

#include <cstddef>
#include <cstdint>

#include "base/matrix.h"

namespace flash_moe::kernels {

enum class Precision : uint8_t {
  float32,  // rows stay f32: the precision that the oracles are held against
  fast,     // affine, mxfp4 and nvfp4 matrices read rows as 16-bit integers with one f32 scale per 64 inputs;
            // the others read f32
};

// y[r][o] = sum_i M[o][i] * x[x_rows ? x_rows[r] : r][i] for o in [out_begin, out_end), r in [0, row_count).
struct MatmulArgs {
  Matrix matrix;
  const uint8_t* x = nullptr;        // prepared rows (prepare_row), x_stride bytes apart, 64-byte aligned
  size_t x_stride = 0;
  const int32_t* x_rows = nullptr;   // which prepared row feeds result row r; null: r itself
  int64_t row_count = 0;
  float* y = nullptr;                // element (r, o) at y[r * y_stride + o]
  int64_t y_stride = 0;
  int64_t out_begin = 0;
  int64_t out_end = 0;
};

// One attention query row of one kv head's group, over `length` cached positions.
struct AttentionArgs {
  const float* q = nullptr;      // [heads_in_group, head_dim], RoPE applied; not scaled
  const void* k = nullptr;       // [length, kv_stride] elements, this head's first element
  const void* v = nullptr;
  int64_t kv_stride = 0;         // elements between positions
  bool kv_is_bf16 = false;       // else f32
  int64_t heads_in_group = 0;
  int64_t head_dim = 0;
  int64_t length = 0;
  float scale = 1;
  float* scores = nullptr;       // scratch [heads_in_group, length]
  float* out = nullptr;          // [heads_in_group, head_dim]
};

// One step of the gated delta rule for one v head (docs/MODEL.md section 3).
struct DeltaStepArgs {
  const float* state_in = nullptr;  // [v_dim, k_dim]
  float* state = nullptr;      // [v_dim, k_dim], the result; may equal state_in
  const float* q = nullptr;    // [k_dim], normalised and scaled
  const float* k = nullptr;    // [k_dim], normalised
  const float* v = nullptr;    // [v_dim]
  float decay = 1;             // g, in (0, 1]
  float beta = 0;
  int64_t k_dim = 0;
  int64_t v_dim = 0;
  float* out = nullptr;        // [v_dim]
  bool past_caches = false;    // a hint: the new state is not read again soon, so it need not displace what is
};

struct Kernels {
  const char* name;  // "reference", "avx2", "avx512", "avx512vnni", "neon", ...
  Precision precision;
  bool has_reference_bits = true;  // false: sums in an order of its own

  // Bytes of one prepared row of `cols` inputs; a multiple of 64. Holds the f32 values, and for
  // Precision::fast what the integer products need beside them.
  size_t (*prepared_bytes)(int64_t cols);
  // Fills dst (prepared_bytes(cols) bytes, 64-byte aligned) from x [cols]. `cols` of a model is a multiple of 32
  // wherever a quantised matrix reads it; other values are allowed for unquantised matrices.
  void (*prepare_row)(const float* x, int64_t cols, uint8_t* dst);
  void (*matmul)(const MatmulArgs& args);

  // y = x * rsqrt(mean(x^2) + eps) * weight; x may equal y.  [n]
  void (*rms_norm)(float* y, const float* x, const float* weight, float eps, int64_t n);
  // y = silu(gate) * up; y may equal either.  [n]
  void (*silu_mul)(float* y, const float* gate, const float* up, int64_t n);
  // y += scale * x.  [n]
  void (*axpy)(float* y, const float* x, float scale, int64_t n);
  // Softmax attention of heads_in_group queries over `length` positions, two passes, one order.
  void (*attention)(const AttentionArgs& args);
  // Depthwise causal convolution and SiLU of one position: out[c] = silu(sum_j window[j][c] * weight[j][c]),
  // window: `taps` pointers to rows [channels], oldest first; weight [taps, channels].
  void (*conv_silu)(float* out, const float* const* window, const float* weight, int64_t taps, int64_t channels);
  void (*delta_step)(const DeltaStepArgs& args);
  // Element-wise row conversions for embeddings and caches.
  void (*f32_to_bf16)(uint16_t* y, const float* x, int64_t n);
  // Row `row` of a matrix of any format, as f32 [cols]: the embedding look-up.
  void (*dequantise_row)(float* y, const Matrix& matrix, int64_t row);
};

// One float sum over inputs by plain C++: the definition. Always available.
const Kernels& reference_kernels(Precision precision);

// Every table this CPU can run for `precision`: the reference, what runs by name only, the others, slowest first.
// Null-terminated.
const Kernels* const* available_kernels(Precision precision);

// The table of that name; "auto" is the fastest that has the reference's bits.
// Null when this CPU or build has no kernels of that name.
const Kernels* find_kernels(const char* name, Precision precision);

}  // namespace flash_moe::kernels
