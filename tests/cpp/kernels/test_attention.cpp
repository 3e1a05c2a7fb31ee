// Attention and the delta rule: over odd sizes, against double and against the reference bit for bit.
#include "base/aligned_memory.h"
#include "kernels/prepared_rows.h"
#include "test.h"

using namespace test;
using namespace flash_moe::kernels;

namespace {

std::vector<float> random_floats(size_t n, uint32_t seed, float spread = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> values(n);
  for (float& v : values) v = normal(random);
  return values;
}

// Keys and values of `length` positions in both element types; the floats are bf16 values, so both agree.
struct Cache {
  Cache(int64_t length, int64_t stride, uint32_t seed) : f32(random_floats(static_cast<size_t>(length * stride), seed)) {
    for (float& v : f32) {
      uint32_t bits;
      std::memcpy(&bits, &v, 4);
      bf16.push_back(static_cast<uint16_t>(bits >> 16));
      bits &= 0xffff0000u;
      std::memcpy(&v, &bits, 4);
    }
  }
  std::vector<float> f32;
  std::vector<uint16_t> bf16;
};

struct AttentionCase {
  int64_t heads, head_dim, length, stride;
  std::vector<float> q;
  Cache k, v;

  AttentionCase(int64_t heads_in, int64_t dim, int64_t len, int64_t extra)
      : heads(heads_in), head_dim(dim), length(len), stride(dim + extra),
        q(random_floats(static_cast<size_t>(heads_in * dim), 3, 2)), k(len, stride, 1), v(len, stride, 2) {}

  std::vector<float> run(const Kernels& kernels, bool bf16) const {
    std::vector<float> out(static_cast<size_t>(heads * head_dim), -1), scores(static_cast<size_t>(heads * length));
    AttentionArgs a;
    a.q = q.data();
    a.k = bf16 ? static_cast<const void*>(k.bf16.data()) : k.f32.data();
    a.v = bf16 ? static_cast<const void*>(v.bf16.data()) : v.f32.data();
    a.kv_stride = stride;
    a.kv_is_bf16 = bf16;
    a.heads_in_group = heads;
    a.head_dim = head_dim;
    a.length = length;
    a.scale = 1 / std::sqrt(static_cast<float>(head_dim));
    a.scores = scores.data();
    a.out = out.data();
    kernels.attention(a);
    return out;
  }

  std::vector<double> in_double() const {
    std::vector<double> out;
    for (int64_t h = 0; h < heads; ++h) {
      std::vector<double> p;
      double sum = 0;
      for (int64_t t = 0; t < length; ++t) {
        double s = 0;
        for (int64_t i = 0; i < head_dim; ++i) {
          s += static_cast<double>(q[static_cast<size_t>(h * head_dim + i)]) *
               static_cast<double>(k.f32[static_cast<size_t>(t * stride + i)]);
        }
        p.push_back(std::exp(s / std::sqrt(static_cast<double>(head_dim))));
        sum += p.back();
      }
      for (int64_t i = 0; i < head_dim; ++i) {
        double value = 0;
        for (int64_t t = 0; t < length; ++t) {
          value += p[static_cast<size_t>(t)] * static_cast<double>(v.f32[static_cast<size_t>(t * stride + i)]);
        }
        out.push_back(value / sum);
      }
    }
    return out;
  }
};

}  // namespace

TEST(attention_is_the_softmax_average_of_values) {
  for (int64_t dim : {1, 7, 16, 24, 33, 64, 100, 128, 256}) {
    for (int64_t length : {1, 2, 3, 15, 17, 63, 64, 65, 130, 200}) {
      for (int64_t heads : {1, 2, 3, 8}) {
        const AttentionCase c(heads, dim, length, length % 2 ? 0 : 5);
        const auto exact = c.in_double();
        const auto want = c.run(reference_kernels(Precision::float32), false);
        for (size_t i = 0; i < want.size(); ++i) CHECK(std::abs(want[i] - exact[i]) < 3e-6);
        for (const Kernels* k : all_tables()) {
          for (bool bf16 : {false, true}) CHECK(same_bits(c.run(*k, bf16), want));
        }
      }
    }
  }
}

TEST(attention_over_a_long_cache_keeps_its_precision) {
  const AttentionCase c(2, 32, 20000, 0);
  const auto exact = c.in_double();
  const auto want = c.run(reference_kernels(Precision::float32), false);
  for (size_t i = 0; i < want.size(); ++i) CHECK(std::abs(want[i] - exact[i]) < 1e-6);
  for (const Kernels* k : all_tables()) CHECK(same_bits(c.run(*k, false), want));
}

TEST(attention_with_one_dominant_position_returns_its_value) {
  AttentionCase c(1, 64, 40, 0);
  for (int64_t i = 0; i < 64; ++i) {
    c.q[static_cast<size_t>(i)] = 40;
    for (int64_t t = 0; t < 40; ++t) c.k.f32[static_cast<size_t>(t * 64 + i)] = t == 17 ? 40.0f : -40.0f;
  }
  for (const Kernels* k : all_tables()) {
    const auto out = c.run(*k, false);
    for (size_t i = 0; i < 64; ++i) CHECK(std::abs(out[i] - c.v.f32[17 * 64 + i]) < 1e-6f);
  }
}

TEST(delta_step_decays_corrects_and_reads_the_state) {
  for (int64_t k_dim : {1, 5, 16, 17, 48, 96, 128, 200}) {
    for (int64_t v_dim : {1, 2, 3, 15, 16, 17, 64, 128}) {
      const auto start = random_floats(static_cast<size_t>(k_dim * v_dim), 5);
      const auto q = random_floats(static_cast<size_t>(k_dim), 6, 0.1f);
      const auto key = random_floats(static_cast<size_t>(k_dim), 7, 0.1f);
      const auto v = random_floats(static_cast<size_t>(v_dim), 8);
      const auto run = [&](const Kernels& kernels, const std::vector<float>& from, std::vector<float>& state) {
        std::vector<float> out(static_cast<size_t>(v_dim), -1);
        DeltaStepArgs a{from.data(), state.data(), q.data(), key.data(), v.data(), 0.93f, 0.4f, k_dim, v_dim, out.data(), false};
        kernels.delta_step(a);
        return out;
      };
      std::vector<float> state(start.size());
      const auto want = run(reference_kernels(Precision::float32), start, state);
      for (int64_t row = 0; row < v_dim; ++row) {
        double product = 0, result = 0;
        for (int64_t i = 0; i < k_dim; ++i) {
          product += static_cast<double>(0.93f) * static_cast<double>(start[static_cast<size_t>(row * k_dim + i)]) *
                     static_cast<double>(key[static_cast<size_t>(i)]);
        }
        const double delta = (static_cast<double>(v[static_cast<size_t>(row)]) - product) * static_cast<double>(0.4f);
        for (int64_t i = 0; i < k_dim; ++i) {
          const auto at = static_cast<size_t>(row * k_dim + i);
          const double s = static_cast<double>(0.93f) * static_cast<double>(start[at]) +
                           delta * static_cast<double>(key[static_cast<size_t>(i)]);
          CHECK(std::abs(state[at] - s) < 1e-6 * (1 + std::abs(s)));
          result += s * static_cast<double>(q[static_cast<size_t>(i)]);
        }
        CHECK(std::abs(want[static_cast<size_t>(row)] - result) < 3e-6);
      }
      for (const Kernels* k : all_tables()) {
        auto in_place = start;
        CHECK(same_bits(run(*k, in_place, in_place), want));
        CHECK(same_bits(in_place, state));
        std::vector<float> beside(start.size(), -7);
        CHECK(same_bits(run(*k, start, beside), want));
        CHECK(same_bits(beside, state));
        // Past the caches, from aligned and from other places.
        flash_moe::AlignedMemory memory((start.size() + 1) * sizeof(float));
        for (const size_t offset : {0, 1}) {
          auto* const there = reinterpret_cast<float*>(memory.data()) + offset;
          std::vector<float> out(static_cast<size_t>(v_dim), -1);
          DeltaStepArgs a{start.data(), there, q.data(), key.data(), v.data(), 0.93f, 0.4f, k_dim, v_dim, out.data(), true};
          k->delta_step(a);
          CHECK(same_bits(out, want));
          CHECK(same_bits(std::vector<float>(there, there + start.size()), state));
        }
      }
    }
  }
}
