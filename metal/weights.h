// Weight matrices as they lie in memory, and dot products of their rows.
//
// DESIGN. A simdgroup computes four output rows for one or four rows of x. A unit is 16 weights of a row (32 where 16 do
// not fill whole words: 3 and 5 bits); unit u belongs to lane u % 32, and a lane adds its units in order. Where the lanes'
// sums meet is simd_sum. A result's order of operations depends on nothing but the row's length, so x rows that are
// computed together have the bits that each has alone.
#pragma once
#include "common.h"

namespace flash_moe {

struct Weights {
  const device uchar* data;
  const device uchar* scales;
  const device uchar* biases;
};

enum MatvecShape : uint { rows_per_simdgroup = matvec_out_rows / (matvec_threads / simd_width) };

inline uint format_kind(uint format) { return format & 15u; }
inline uint format_bits(uint format) { return (format >> 4) & 15u; }
inline uint format_scale_kind(uint format) { return (format >> 8) & 15u; }
inline uint format_group(uint format) { return format >> 12; }
inline bool is_plain(uint format) { return format_kind(format) <= element_bf16; }
inline bool has_e2m1_codes(uint format) {
  return format_kind(format) == element_mxfp4 || format_kind(format) == element_nvfp4;
}

// E2M1 and E4M3 have the fields of a half with a smaller bias, subnormals included. E4M3 has no infinity.
inline float e2m1_value(uint code) {
  return 16384.0f * float(as_type<half>(ushort((code & 8u) << 12 | (code & 7u) << 9)));
}
inline float e4m3_value(uint code) {
  const float value = 256.0f * float(as_type<half>(ushort((code & 128u) << 8 | (code & 127u) << 7)));
  return (code & 127u) == 127u ? NAN : value;
}
inline float float_code_value(uint code, uint bits) { return bits == 4 ? e2m1_value(code) : e4m3_value(code); }

// 2^(code - 127)
inline float e8m0_value(uint code) {
  return code == 255u ? NAN : as_type<float>(code == 0 ? 0x00400000u : code << 23);
}

// What the codes of columns col .. col + 15 of a row are multiplied by: not affine, not plain.
inline float float_scale(Weights weights, uint format, uint cols, ulong row, uint col) {
  const uint group = format_group(format);
  if (format_kind(format) == element_fp8_block) {
    const ulong at = row / group * ((cols + group - 1) / group) + col / group;
    return load_element(weights.scales, at, format_scale_kind(format));
  }
  const uint code = weights.scales[row * (cols / group) + col / group];
  return format_kind(format) == element_nvfp4 ? e4m3_value(code) : e8m0_value(code);
}

template <uint bits>
constexpr uint unit_size() {
  return bits == 3 || bits == 5 ? 32 : 16;
}

// Code i of a run of little-endian words.
template <uint bits>
inline uint code_at(const thread uint* words, uint i) {
  const uint shift = i * bits % 32;
  uint code = words[i * bits / 32] >> shift;
  if (shift + bits > 32) code |= words[i * bits / 32 + 1] << (32 - shift);
  return code & ((1u << bits) - 1u);
}

// The part of a product that one simdgroup computes: rows [first_row, first_row + rows_per_simdgroup) of the matrix;
// those at or above row_limit repeat the last one, and their sums are not stored.
struct Part {
  uint first_row;
  uint row_limit;
  uint cols;
};

inline ulong part_row(Part part, uint r) { return metal::min(part.first_row + r, part.row_limit - 1); }

// words = unit `unit` of the matrix
template <uint count>
inline void load_words(thread uint* words, const device uchar* data, ulong unit) {
  const device uint* from = (const device uint*)data + unit * count;
  for (uint j = 0; j < count; ++j) words[j] = from[j];
}

// inputs = unit `unit` of a row of x
template <uint size>
inline void load_inputs(thread float* inputs, const device float* x, uint unit) {
  const device float4* from = (const device float4*)x + unit * (size / 4);
  for (uint j = 0; j < size / 4; ++j) {
    const float4 four = from[j];
    for (uint e = 0; e < 4; ++e) inputs[4 * j + e] = four[e];
  }
}

// sums[r * x_count + i] += the lane's share of row r times row i of x, which starts at x[offsets[i]].
template <uint bits, uint x_count>
inline void dot_affine(thread float* sums, Weights weights, uint format, Part part, const device float* x,
                       const thread ulong* offsets, uint lane) {
  constexpr uint size = unit_size<bits>();
  constexpr uint words_per_unit = size * bits / 32;
  const uint unit_count = part.cols / size;
  const uint group = format_group(format);
  const uint scales_per_row = part.cols / group;
  for (uint unit = lane; unit < unit_count; unit += simd_width) {
    float inputs[x_count][size];
    for (uint i = 0; i < x_count; ++i) load_inputs<size>(inputs[i], x + offsets[i], unit);
    for (uint r = 0; r < rows_per_simdgroup; ++r) {
      const ulong row = part_row(part, r);
      uint words[words_per_unit];
      load_words<words_per_unit>(words, weights.data, row * unit_count + unit);
      const ulong scale_at = row * scales_per_row + unit * size / group;
      const float scale = load_element(weights.scales, scale_at, format_scale_kind(format));
      const float bias = load_element(weights.biases, scale_at, format_scale_kind(format));
      for (uint i = 0; i < x_count; ++i) {
        float sum = sums[r * x_count + i];
        for (uint j = 0; j < size; ++j) {
          const float input = inputs[i][j];
          sum += metal::fma(float(code_at<bits>(words, j)), scale * input, bias * input);
        }
        sums[r * x_count + i] = sum;
      }
    }
  }
}

// Rows of E2M1 (4 bits) or E4M3 (8 bits) codes under scales: as dot_affine, without a bias.
template <uint bits, uint x_count>
inline void dot_float_codes(thread float* sums, Weights weights, uint format, Part part, const device float* x,
                            const thread ulong* offsets, uint lane) {
  constexpr uint size = 16;
  constexpr uint words_per_unit = size * bits / 32;
  const uint unit_count = part.cols / size;
  for (uint unit = lane; unit < unit_count; unit += simd_width) {
    float inputs[x_count][size];
    for (uint i = 0; i < x_count; ++i) load_inputs<size>(inputs[i], x + offsets[i], unit);
    for (uint r = 0; r < rows_per_simdgroup; ++r) {
      const ulong row = part_row(part, r);
      uint words[words_per_unit];
      load_words<words_per_unit>(words, weights.data, row * unit_count + unit);
      const float scale = float_scale(weights, format, part.cols, row, unit * size);
      float values[size];
      for (uint j = 0; j < size; ++j) values[j] = scale * float_code_value(code_at<bits>(words, j), bits);
      for (uint i = 0; i < x_count; ++i) {
        float sum = sums[r * x_count + i];
        for (uint j = 0; j < size; ++j) sum = metal::fma(values[j], inputs[i][j], sum);
        sums[r * x_count + i] = sum;
      }
    }
  }
}

// Rows of f32, f16 or bf16, of any length: four elements a lane.
template <uint x_count>
inline void dot_plain(thread float* sums, Weights weights, uint kind, Part part, const device float* x,
                      const thread ulong* offsets, uint lane) {
  for (uint first = 4 * lane; first < part.cols; first += 4 * simd_width) {
    const uint end = metal::min(first + 4, part.cols);
    for (uint r = 0; r < rows_per_simdgroup; ++r) {
      const ulong row = part_row(part, r);
      for (uint col = first; col < end; ++col) {
        const float weight = load_element(weights.data, row * part.cols + col, kind);
        for (uint i = 0; i < x_count; ++i) {
          sums[r * x_count + i] = metal::fma(weight, x[offsets[i] + col], sums[r * x_count + i]);
        }
      }
    }
  }
}

// The lane's share of every sum of `part`, from zero. `format` is a function constant.
template <uint x_count>
inline void dot_rows(thread float* sums, Weights weights, uint format, Part part, const device float* x,
                     const thread ulong* offsets, uint lane) {
  for (uint i = 0; i < rows_per_simdgroup * x_count; ++i) sums[i] = 0.0f;
  if (is_plain(format)) {
    dot_plain<x_count>(sums, weights, format_kind(format), part, x, offsets, lane);
  } else if (has_e2m1_codes(format)) {
    dot_float_codes<4, x_count>(sums, weights, format, part, x, offsets, lane);
  } else if (format_kind(format) != element_affine) {
    dot_float_codes<8, x_count>(sums, weights, format, part, x, offsets, lane);
  } else if (format_bits(format) == 2) {
    dot_affine<2, x_count>(sums, weights, format, part, x, offsets, lane);
  } else if (format_bits(format) == 3) {
    dot_affine<3, x_count>(sums, weights, format, part, x, offsets, lane);
  } else if (format_bits(format) == 4) {
    dot_affine<4, x_count>(sums, weights, format, part, x, offsets, lane);
  } else if (format_bits(format) == 5) {
    dot_affine<5, x_count>(sums, weights, format, part, x, offsets, lane);
  } else if (format_bits(format) == 6) {
    dot_affine<6, x_count>(sums, weights, format, part, x, offsets, lane);
  } else {
    dot_affine<8, x_count>(sums, weights, format, part, x, offsets, lane);
  }
}

// Code `col` of a row that starts at `row_data`: byte reads, for the kernels that look at single elements.
inline uint load_code(const device uchar* row_data, uint col, uint bits) {
  const uint bit = col * bits;
  uint word = row_data[bit / 8];
  if (bit % 8 + bits > 8) word |= uint(row_data[bit / 8 + 1]) << 8;
  return (word >> (bit % 8)) & ((1u << bits) - 1u);
}

// Element (row, col) of a matrix: code * scale + bias or code * scale with one rounding, or the stored value.
inline float weight_at(Weights weights, uint format, uint cols, ulong row, uint col) {
  if (is_plain(format)) return load_element(weights.data, row * cols + col, format_kind(format));
  const uint bits = format_bits(format);
  const uint code = load_code(weights.data + row * (ulong(cols) * bits / 8), col, bits);
  if (format_kind(format) != element_affine) {
    return float_scale(weights, format, cols, row, col) * float_code_value(code, bits);
  }
  const ulong scale_at = row * (cols / format_group(format)) + col / format_group(format);
  return metal::fma(float(code), load_element(weights.scales, scale_at, format_scale_kind(format)),
                    load_element(weights.biases, scale_at, format_scale_kind(format)));
}

}  // namespace flash_moe
