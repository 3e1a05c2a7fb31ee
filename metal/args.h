#pragma once
// What the host and the kernels agree on: arguments, function constants, tile sizes and, in one page, every kernel with
// its buffers and its grid. Compiled by both sides; the kernels' own files state shapes and formulas.
//
// Rules that hold for all kernels:
//   activations are f32; a row of x read by a quantised matrix starts on 16 bytes and has a multiple of 32 columns
//   matrix data starts on 4 bytes (quantised) or on its element (f32, f16, bf16); scales and biases on their element
//   grids count threadgroups unless "threads" is said; threadgroups have exactly the size stated here
//   a declared buffer is always bound: where a format has no scales and biases, the data is bound again
//   outputs never alias inputs unless "in place" is said

#ifdef __METAL_VERSION__
#include <metal_stdlib>
#define FLASH_MOE_METAL_NAMESPACE flash_moe
#else
#include <cstdint>
#define FLASH_MOE_METAL_NAMESPACE flash_moe::metal
#endif

namespace FLASH_MOE_METAL_NAMESPACE {

// --- function constants ------------------------------------------------------------------------------------------
enum FunctionConstant : uint32_t {
  constant_format = 0,         // uint: weight_format() of the kernel's matrix (gate, where there is a gate and an up)
  constant_second_format = 1,  // uint: weight_format() of `up` in gated_matvec and expert_gate_up*
  constant_k_dim = 2,          // uint: k dimension of gated_delta, 1..256
  constant_head_dim = 3,       // uint: head dimension of attention*, 1..256
  constant_kv_is_bf16 = 4,     // bool: the key/value cache holds bf16, else f32
  constant_attention_gate = 5  // bool: q holds [q | gate] a head, and the output is multiplied by sigmoid(gate)
};

enum ElementKind : uint32_t {
  element_f32 = 0,
  element_f16 = 1,
  element_bf16 = 2,
  element_affine = 3,     // code * scale + bias
  element_mxfp4 = 4,      // E2M1 * 2^(scale - 127)
  element_nvfp4 = 5,      // E2M1 * E4M3
  element_mxfp8 = 6,      // E4M3 * 2^(scale - 127)
  element_fp8_block = 7   // E4M3 * scale of its 128 x 128 block
};

// One number for what base/matrix.h says of a matrix, so that a pipeline is specialised for it.
//   f32, f16, bf16:        kind alone
//   affine:                bits 2, 3, 4, 5, 6, 8; group 32, 64, 128; scale_kind of scales and biases
//   mxfp4, nvfp4, mxfp8:   bits 4, 4, 8; group 32, 16, 32; one byte a scale
//   fp8_block:             bits 8; group 128; scale_kind
inline constexpr uint32_t weight_format(uint32_t kind, uint32_t bits, uint32_t group, uint32_t scale_kind) {
  return kind | bits << 4 | scale_kind << 8 | group << 12;
}

// --- tiles -------------------------------------------------------------------------------------------------------
enum Tile : uint32_t {
  matvec_threads = 64,          // two simdgroups of four output rows
  matvec_out_rows = 8,
  matvec_x_rows = 4,            // x rows that share one pass over the weights; each gets the bits it has alone
  matmul_threads = 128,         // four simdgroups, each 16 x 16 of a 32 x 32 tile of y
  matmul_out_rows = 32,
  matmul_x_rows = 32,
  row_threads = 256,            // rms_norm, combine
  head_threads = 32,            // one simdgroup a head or a row
  attention_threads = 256,      // eight simdgroups share the positions of a split
  attention_split = 512,        // positions a split of attention_decode covers
  prefill_threads = 128,        // four simdgroups of eight query rows
  prefill_rows = 32,
  delta_threads = 128,          // four simdgroups of four state rows
  delta_rows = 16,
  argmax_threads = 256,
  experts_per_token_max = 32    // k of router_topk
};

// --- arguments ---------------------------------------------------------------------------------------------------
struct EmbedArgs {
  uint32_t cols;        // hidden
  uint32_t row_count;
};

struct NormArgs {
  uint32_t n;           // elements of a row
  uint32_t use_rows;    // 1: row i of y is the norm of row rows[i] of x; 0: `rows` is not read
  float eps;
};

struct MatvecArgs {
  uint32_t rows;        // of the matrix: outputs
  uint32_t cols;
  uint32_t row_count;   // rows of x and y
  uint32_t x_stride;    // floats from a row of x to the next; a multiple of 4 for affine
  uint32_t y_stride;
  uint32_t add;         // 1: y += M x, 0: y = M x
};

struct ElementArgs {
  uint32_t count;
};

// Offsets in bytes into the arena buffer, of one expert's nine pieces (biases: as data where the format has none).
struct ExpertPlace {
  uint64_t gate_data, gate_scales, gate_biases;
  uint64_t up_data, up_scales, up_biases;
  uint64_t down_data, down_scales, down_biases;
};

// Assignments [first, first + count) of the list belong to expert places[place]. At most matvec_x_rows (expert_gate_up,
// expert_down) or matmul_x_rows (the _tiles kernels) in one item.
struct ExpertItem {
  uint32_t place;
  uint32_t first;
  uint32_t count;
};

struct ExpertArgs {
  uint32_t hidden;
  uint32_t inner;
  uint32_t per_row;     // k: assignment = row * k + rank
};

struct RouterArgs {
  uint32_t experts;     // any number
  uint32_t per_row;     // k, 1..experts_per_token_max
  uint32_t normalise;   // weights are divided by their sum
};

struct RopeArgs {
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t head_dim;    // 1 to 256; even rotary_dim <= head_dim
  uint32_t rotary_dim;
  uint32_t q_stride;    // floats a row of q: heads * head_dim, twice that with the gate
  uint32_t q_head;      // floats from a head of q to the next: head_dim, or 2 * head_dim
  uint32_t kv_stride;   // floats a row of k and of v; elements a position of the cache: kv_heads * head_dim
  uint32_t position;    // of the first row
  float eps;
};

struct AttentionArgs {
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t q_stride;
  uint32_t q_head;
  uint32_t kv_stride;   // elements from a position of the cache to the next
  uint32_t position;    // of the first row: row r attends to position + r + 1 positions
  uint32_t row_count;
  uint32_t split_count; // ceil((position + row_count) / attention_split)
  float scale;          // 1 / sqrt(head_dim)
};

struct ConvArgs {
  uint32_t channels;
  uint32_t taps;        // 2..16
  uint32_t row_count;
};

struct DeltaArgs {
  uint32_t row_count;
  uint32_t k_heads;
  uint32_t v_heads;
  uint32_t k_dim;
  uint32_t v_dim;
  uint32_t channels;    // 2 * k_heads * k_dim + v_heads * v_dim
  float eps;            // of delta_qk_norm (1e-6) and gated_norm (the model's)
};

struct CombineArgs {
  uint32_t hidden;
  uint32_t per_row;     // k
  uint32_t has_shared;  // 0: shared and shared_gate are not read
  float eps;            // combine_norm
};

struct ArgmaxArgs {
  uint32_t n;
};

static_assert(sizeof(EmbedArgs) == 8 && sizeof(NormArgs) == 12 && sizeof(MatvecArgs) == 24, "packed alike on both sides");
static_assert(sizeof(ExpertPlace) == 72 && sizeof(ExpertItem) == 12 && sizeof(ExpertArgs) == 12, "packed alike on both sides");
static_assert(sizeof(RouterArgs) == 12 && sizeof(RopeArgs) == 36 && sizeof(AttentionArgs) == 36, "packed alike on both sides");
static_assert(sizeof(ConvArgs) == 12 && sizeof(DeltaArgs) == 28 && sizeof(CombineArgs) == 16, "packed alike on both sides");
static_assert(sizeof(ElementArgs) == 4 && sizeof(ArgmaxArgs) == 4, "packed alike on both sides");

// --- kernels -----------------------------------------------------------------------------------------------------
// Buffer indices as the kernels declare them (a test compares the two), then "grid x threads". ceil(a / b) is a/b here.
#ifndef __METAL_VERSION__
namespace buffers {

// y [row_count, cols] = rows tokens[i] of the matrix.                       grid: threads (cols, row_count) x (32, 1)
namespace embed { enum { data, scales, biases, tokens, y, args }; }
// y [row_count, n]; rows of y dense, of x dense.                            grid: (row_count) x row_threads
namespace rms_norm { enum { x, weight, y, rows, args }; }
// y [row_count, rows] (+)= M x.             grid: (rows / matvec_out_rows, row_count / matvec_x_rows) x matvec_threads
namespace matvec { enum { data, scales, biases, x, y, args }; }
// The same product for many rows.           grid: (rows / matmul_out_rows, row_count / matmul_x_rows) x matmul_threads
namespace matmul { enum { data, scales, biases, x, y, args }; }
// y [row_count, rows] = silu(gate x) * up x (`add` is ignored).             grid: as matvec
namespace gated_matvec {
enum { gate_data, gate_scales, gate_biases, up_data, up_scales, up_biases, x, y, args };
}
// y = silu(gate) * up, [count]; y may be gate or up.                        grid: threads (count) x 256
namespace silu_mul { enum { gate, up, y, args }; }
// inner [i, inner] = silu(gate x) * up x for x = row assignments[i] / k: dense, in the order of the list.
//                                                     grid: (inner / matvec_out_rows, item count) x matvec_threads
namespace expert_gate_up { enum { arena, places, items, assignments, x, inner, args }; }
// outputs [assignment, hidden] = down inner.          grid: (hidden / matvec_out_rows, item count) x matvec_threads
namespace expert_down { enum { arena, places, items, assignments, inner, outputs, args }; }
// expert_gate_up_tiles, expert_down_tiles: the same buffers; items of up to matmul_x_rows assignments.
//                                         grid: (inner or hidden / matmul_out_rows, item count) x matmul_threads
// Softmax over all logits, the k largest ranked, ties to the lower id.      grid: (row_count) x head_threads
namespace router_topk { enum { logits, ids, weights, args }; }
// Norms and turns q in place; k on its way into the cache, with v. angles [row_count, rotary_dim]: cos, then sin.
//                                                        grid: (heads + 2 * kv_heads, row_count) x head_threads
namespace qk_norm_rope_append { enum { q, k, v, q_norm, k_norm, angles, keys, values, args }; }
// partials [row, head, split, head_dim] and stats [row, head, split, 2] (maximum, sum) of every split.
//                                                        grid: (heads, split_count, row_count) x attention_threads
namespace attention_decode { enum { q, keys, values, partials, stats, args }; }
// out [row, heads * head_dim] from the splits, times sigmoid(gate).         grid: (heads, row_count) x head_threads
namespace attention_merge { enum { q, partials, stats, out, args }; }
// The same result for many rows at once.              grid: (heads, row_count / prefill_rows) x prefill_threads
namespace attention_prefill { enum { q, keys, values, out, args }; }
// y [row_count, channels]; window_in, window_out [taps - 1, channels], oldest first, may be the same memory.
//                                                                           grid: threads (channels) x 64
namespace conv_silu { enum { qkv, window_in, window_out, weight, y, args }; }
// Unit length for the q and k heads of convolved qkv, q times k_dim^-0.5; in place.
//                                                                 grid: (2 * k_heads, row_count) x head_threads
namespace delta_qk_norm { enum { qkv, args }; }
// The recurrence over all rows; out [row_count, v_heads * v_dim]; state_in and state_out [v_heads, v_dim, k_dim] may be
// the same memory. a, b [row_count, v_heads].              grid: (v_dim / delta_rows, v_heads) x delta_threads
namespace gated_delta { enum { qkv, a, b, decay_rate, dt_bias, state_in, state_out, out, args }; }
// y = weight * rms_norm(o) * silu(z), a head; y may be o.         grid: (v_heads, row_count) x head_threads
namespace gated_norm { enum { o, z, weight, y, args }; }
// h += sum over ranks of weight * output, then sigmoid(shared_gate) * shared.    grid: (row_count) x row_threads
namespace combine { enum { h, outputs, weights, shared, shared_gate, args }; }
// combine, then x = rms_norm(h) * norm: the next mixer's input.                  grid: (row_count) x row_threads
namespace combine_norm { enum { h, outputs, weights, shared, shared_gate, args, norm, x }; }
// ids [row_count]: the first index of the largest of n logits.                   grid: (row_count) x argmax_threads
namespace argmax { enum { logits, ids, args }; }

}  // namespace buffers
#endif

}  // namespace FLASH_MOE_METAL_NAMESPACE

#undef FLASH_MOE_METAL_NAMESPACE
