#pragma once
// For ISA files, after their lanes header: every kernel but the products, in the order of reference.cpp.

#include <cmath>

#include "kernels/fetch_ahead.h"
#include "kernels/kernels.h"

namespace flash_moe::kernels {
namespace {

// fn(i, n) for each full sixteen (n = 16) and for the rest (n < 16).
template <typename Fn>
inline void for_sixteens(int64_t n, Fn fn) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) fn(i, int64_t{16});
  if (i < n) fn(i, n - i);
}

inline Lanes load_upto(const float* p, int64_t n) { return n == 16 ? load(p) : load_part(p, n); }
inline void store_upto(float* p, Lanes x, int64_t n) {
  if (n == 16) {
    store(p, x);
  } else {
    store_part(p, x, n);
  }
}

// As exp_f32 in reference.cpp: 1.2 ulp between -87.3 and 88, constant beyond; NaN stays NaN.
inline Lanes exp_lanes(Lanes x) {
  const Lanes magic = broadcast(12582912.0f);
  const Lanes t = larger(broadcast(-87.3f), smaller(broadcast(88.0f), x));
  const Lanes shifted = fma(t, broadcast(0x1.715476p+0f), magic);
  const Lanes n = sub(shifted, magic);
  Lanes r = fma(n, broadcast(-0x1.62e400p-1f), t);
  r = fma(n, broadcast(-0x1.7f7d1cp-20f), r);
  Lanes p = broadcast(0x1.6a23cep-10f);
  p = fma(p, r, broadcast(0x1.123a20p-7f));
  p = fma(p, r, broadcast(0x1.5558f2p-5f));
  p = fma(p, r, broadcast(0x1.555492p-3f));
  p = fma(p, r, broadcast(0x1.fffffcp-2f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  return mul(p, power_of_two(shifted));
}

inline Lanes silu_lanes(Lanes x) {
  return div(x, add(broadcast(1.0f), exp_lanes(mul(x, broadcast(-1.0f)))));
}

inline float dot(const float* a, const float* b, int64_t n) {
  Lanes sum = zero();
  for_sixteens(n, [&](int64_t i, int64_t count) {
    sum = fma(load_upto(a + i, count), load_upto(b + i, count), sum);
  });
  return reduce(sum);
}

inline void rms_norm(float* y, const float* x, const float* weight, float eps, int64_t n) {
  const Lanes scale = broadcast(1.0f / sqrtf(dot(x, x, n) / static_cast<float>(n) + eps));
  for_sixteens(n, [&](int64_t i, int64_t count) {
    store_upto(y + i, mul(mul(load_upto(x + i, count), scale), load_upto(weight + i, count)), count);
  });
}

inline void silu_mul(float* y, const float* gate, const float* up, int64_t n) {
  for_sixteens(n, [&](int64_t i, int64_t count) {
    store_upto(y + i, mul(silu_lanes(load_upto(gate + i, count)), load_upto(up + i, count)), count);
  });
}

inline void axpy(float* y, const float* x, float scale, int64_t n) {
  const Lanes s = broadcast(scale);
  for_sixteens(n, [&](int64_t i, int64_t count) {
    store_upto(y + i, fma(s, load_upto(x + i, count), load_upto(y + i, count)), count);
  });
}

inline void convert_to_bf16(uint16_t* y, const float* x, int64_t n) {
  for_sixteens(n, [&](int64_t i, int64_t count) {
    if (count == 16) {
      store_bf16(y + i, load(x + i));
    } else {
      store_bf16_part(y + i, load_part(x + i, count), count);
    }
  });
}

inline void conv_silu(float* out, const float* const* window, const float* weight, int64_t taps, int64_t channels) {
  for_sixteens(channels, [&](int64_t c, int64_t count) {
    Lanes sum = zero();
    for (int64_t j = 0; j < taps; ++j) {
      sum = fma(load_upto(window[j] + c, count), load_upto(weight + j * channels + c, count), sum);
    }
    store_upto(out + c, silu_lanes(sum), count);
  });
}

// Up to four rows of the state at once; their reductions share the shuffles. The old state is decayed twice, to the same bits,
// so that the new one is written only once.
template <int rows, void (*store_new)(float*, Lanes, int64_t)>
inline void delta_rows(const DeltaStepArgs& a, int64_t row) {
  const float* before = a.state_in + row * a.k_dim;
  float* state = a.state + row * a.k_dim;
  Lanes sums[4] = {zero(), zero(), zero(), zero()};
  const Lanes decay = broadcast(a.decay);
  for_sixteens(a.k_dim, [&](int64_t i, int64_t count) {
    const Lanes k = load_upto(a.k + i, count);
    for (int j = 0; j < rows; ++j) {
      const float* from = before + j * a.k_dim + i;
      fetch_ahead(reinterpret_cast<const uint8_t*>(from), 0, 64);
      sums[j] = fma(mul(load_upto(from, count), decay), k, sums[j]);
    }
  });
  float products[4];
  reduce4(sums, products);
  for (int j = 0; j < rows; ++j) {
    const Lanes delta = broadcast((a.v[row + j] - products[j]) * a.beta);
    Lanes sum = zero();
    for_sixteens(a.k_dim, [&](int64_t i, int64_t count) {
      const Lanes s = fma(delta, load_upto(a.k + i, count), mul(load_upto(before + j * a.k_dim + i, count), decay));
      store_new(state + j * a.k_dim + i, s, count);
      sum = fma(s, load_upto(a.q + i, count), sum);
    });
    sums[j] = sum;
  }
  reduce4(sums, products);
  for (int j = 0; j < rows; ++j) a.out[row + j] = products[j];
}

template <void (*store_new)(float*, Lanes, int64_t)>
inline void delta_rows_of(const DeltaStepArgs& a) {
  int64_t row = 0;
  for (; row + 4 <= a.v_dim; row += 4) delta_rows<4, store_new>(a, row);
  for (; row < a.v_dim; ++row) delta_rows<1, store_new>(a, row);
}

inline void store_sixteen_past_caches(float* p, Lanes x, int64_t) { store_past_caches(p, x); }

inline void delta_step(const DeltaStepArgs& a) {
  if (a.past_caches && a.k_dim % 16 == 0 && reinterpret_cast<uintptr_t>(a.state) % 64 == 0) {
    delta_rows_of<store_sixteen_past_caches>(a);
    end_stores_past_caches();
  } else {
    delta_rows_of<store_upto>(a);
  }
}

struct FloatCache {
  using Element = float;
  static Lanes read(const float* p, int64_t n) { return load_upto(p, n); }
};
struct Bf16Cache {
  using Element = uint16_t;
  static Lanes read(const uint16_t* p, int64_t n) { return n == 16 ? load_bf16(p) : load_bf16_part(p, n); }
};

// scores[h][p] for four positions from p on (`count` of them valid) and `heads` heads.
template <typename Cache, int heads>
inline void score_positions(const AttentionArgs& a, int64_t head, int64_t p, int64_t count) {
  const auto* k = static_cast<const typename Cache::Element*>(a.k);
  const typename Cache::Element* rows[4];
  for (int64_t j = 0; j < 4; ++j) rows[j] = k + (p + (j < count ? j : 0)) * a.kv_stride;
  Lanes sums[heads][4];
  for (auto& of_head : sums) {
    for (Lanes& sum : of_head) sum = zero();
  }
  const float* q = a.q + head * a.head_dim;
  for_sixteens(a.head_dim, [&](int64_t i, int64_t n) {
    Lanes values[4];
    for (int j = 0; j < 4; ++j) values[j] = Cache::read(rows[j] + i, n);
    for (int h = 0; h < heads; ++h) {
      const Lanes qh = load_upto(q + h * a.head_dim + i, n);
      for (int j = 0; j < 4; ++j) sums[h][j] = fma(qh, values[j], sums[h][j]);
    }
  });
  for (int h = 0; h < heads; ++h) {
    float products[4];
    reduce4(sums[h], products);
    float* scores = a.scores + (head + h) * a.length + p;
    for (int64_t j = 0; j < count; ++j) scores[j] = products[j] * a.scale;
  }
}

// Turns the scores of a head into exponentials; returns 1 / their sum.
inline float exponentiate(float* scores, int64_t length) {
  Lanes maxima = broadcast(-INFINITY);
  int64_t p = 0;
  for (; p + 16 <= length; p += 16) maxima = larger(load(scores + p), maxima);
  float max = reduce_larger(maxima);
  for (; p < length; ++p) max = scores[p] > max ? scores[p] : max;
  const Lanes shift = broadcast(max);
  Lanes sums = zero();
  for (p = 0; p + 16 <= length; p += 16) {
    const Lanes e = exp_lanes(sub(load(scores + p), shift));
    store(scores + p, e);
    sums = add(sums, e);
  }
  if (p < length) {
    store_part(scores + p, exp_lanes(sub(load_part(scores + p, length - p), shift)), length - p);
    sums = add(sums, load_part(scores + p, length - p));
  }
  return 1.0f / reduce(sums);
}

// Adds positions [begin, end) to out[h][i .. i + 16 * vectors) of `heads` heads; n < 16 only for one vector.
template <typename Cache, int heads, int vectors>
inline void add_values(const AttentionArgs& a, int64_t head, int64_t i, int64_t n, int64_t begin, int64_t end) {
  const auto* v = static_cast<const typename Cache::Element*>(a.v) + i;
  Lanes parts[heads][vectors];
  for (auto& of_head : parts) {
    for (Lanes& part : of_head) part = zero();
  }
  for (int64_t p = begin; p < end; ++p) {
    Lanes values[vectors];
    for (int j = 0; j < vectors; ++j) values[j] = Cache::read(v + p * a.kv_stride + 16 * j, n);
    for (int h = 0; h < heads; ++h) {
      const Lanes weight = broadcast(a.scores[(head + h) * a.length + p]);
      for (int j = 0; j < vectors; ++j) parts[h][j] = fma(weight, values[j], parts[h][j]);
    }
  }
  for (int h = 0; h < heads; ++h) {
    float* out = a.out + (head + h) * a.head_dim + i;
    for (int j = 0; j < vectors; ++j) store_upto(out + 16 * j, add(load_upto(out + 16 * j, n), parts[h][j]), n);
  }
}

template <typename Cache, int heads>
inline void attend(const AttentionArgs& a, int64_t head) {
  for (int64_t p = 0; p < a.length; p += 4) {
    score_positions<Cache, heads>(a, head, p, a.length - p < 4 ? a.length - p : 4);
  }
  float inverse[heads];
  for (int h = 0; h < heads; ++h) inverse[h] = exponentiate(a.scores + (head + h) * a.length, a.length);
  float* out = a.out + head * a.head_dim;
  for_sixteens(heads * a.head_dim, [&](int64_t i, int64_t n) { store_upto(out + i, zero(), n); });
  for (int64_t begin = 0; begin < a.length; begin += 64) {
    const int64_t end = begin + 64 < a.length ? begin + 64 : a.length;
    int64_t i = 0;
    for (; i + 16 * kAttentionVectors <= a.head_dim; i += 16 * kAttentionVectors) {
      add_values<Cache, heads, kAttentionVectors>(a, head, i, 16, begin, end);
    }
    for (; i < a.head_dim; i += 16) {
      add_values<Cache, heads, 1>(a, head, i, a.head_dim - i < 16 ? a.head_dim - i : 16, begin, end);
    }
  }
  for (int h = 0; h < heads; ++h) {
    const Lanes scale = broadcast(inverse[h]);
    float* mine = out + h * a.head_dim;
    for_sixteens(a.head_dim, [&](int64_t i, int64_t n) { store_upto(mine + i, mul(load_upto(mine + i, n), scale), n); });
  }
}

template <typename Cache>
inline void attend_all(const AttentionArgs& a) {
  int64_t head = 0;
  for (; head + kAttentionHeads <= a.heads_in_group; head += kAttentionHeads) attend<Cache, kAttentionHeads>(a, head);
  for (; head < a.heads_in_group; ++head) attend<Cache, 1>(a, head);
}

inline void attention(const AttentionArgs& a) {
  if (a.kv_is_bf16) {
    attend_all<Bf16Cache>(a);
  } else {
    attend_all<FloatCache>(a);
  }
}

}  // namespace
}  // namespace flash_moe::kernels
