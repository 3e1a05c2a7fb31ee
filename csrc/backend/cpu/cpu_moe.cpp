// Router, routed experts, shared expert, dense MLP (docs/MODEL.md section 4).
#include <algorithm>
#include <cmath>

#include "backend/cpu/cpu_backend.h"
#include "base/check.h"
#include "kernels/router.h"

namespace flash_moe::backend {

void CpuBackend::select(const float* logits, int64_t row_count, Routes& routes) {
  const int64_t k = experts_per_token_;
  routes.row_count = row_count;
  routes.per_row = k;
  routes.logits = {logits, static_cast<size_t>(row_count * shape_.experts)};
  routes.ids.resize(static_cast<size_t>(row_count * k));
  routes.weights.resize(static_cast<size_t>(row_count * k));
  pool_.run(row_count, [&](int64_t row) {
    kernels::softmax_topk(logits + row * shape_.experts, shape_.experts, k, shape_.norm_topk_prob,
                          routes.ids.data() + row * k, routes.weights.data() + row * k);
  });
}

void CpuBackend::route(int64_t layer, Routes& routes) {
  const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
  const auto stride = static_cast<int64_t>(kernels_->prepared_bytes(shape_.hidden));
  for (int64_t begin = 0; begin < row_count_; begin += kBlockRows)
    normalise_and_prepare(weights.post_norm, begin, std::min(kBlockRows, row_count_ - begin),
                          prepared_.data() + begin * stride);
  float* logits = projected_.ensure(row_count_ * shape_.experts);
  const Product product{weights.moe.router, prepared_.data(), nullptr, row_count_, logits, shape_.experts};
  multiply({&product, 1});
  select(logits, row_count_, routes);
  outputs_used_ = 0;
  expert_out_.ensure(row_count_ * experts_per_token_ * shape_.hidden);
  output_row_.ensure(row_count_ * experts_per_token_);
}

void CpuBackend::guess_routes(int64_t layer, Routes& routes) {
  const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
  const int64_t row_count = std::min(row_count_, kBlockRows);
  const auto stride = static_cast<int64_t>(kernels_->prepared_bytes(shape_.hidden));
  uint8_t* prepared = prepared_mid_.ensure(row_count * stride);
  normalise_and_prepare(weights.post_norm, 0, row_count, prepared);
  float* logits = inner_.ensure(row_count * shape_.experts);
  const Product product{weights.moe.router, prepared, nullptr, row_count, logits, shape_.experts};
  multiply({&product, 1});
  select(logits, row_count, routes);
}

// out [row_count, hidden] = down(silu(gate x) * up x)
void CpuBackend::gated_mlp(const ExpertMatrices& m, const uint8_t* x, int64_t row_count, float* out) {
  const int64_t inner = m.gate.rows;
  float* gate = inner_.ensure(row_count * 2 * inner);
  float* up = gate + row_count * inner;
  const Product products[] = {{m.gate, x, nullptr, row_count, gate, inner}, {m.up, x, nullptr, row_count, up, inner}};
  multiply(products);
  const auto stride = static_cast<int64_t>(kernels_->prepared_bytes(inner));
  uint8_t* prepared = prepared_mid_.ensure(row_count * stride);
  pool_.run(row_count, [&](int64_t row) {
    kernels_->silu_mul(gate + row * inner, gate + row * inner, up + row * inner, inner);
    kernels_->prepare_row(gate + row * inner, inner, prepared + row * stride);
  });
  const Product down{m.down, prepared, nullptr, row_count, out, shape_.hidden};
  multiply({&down, 1});
}

void CpuBackend::shared_expert(int64_t layer) {
  if (shape_.shared_inner == 0) return;
  const MoeWeights& weights = weights_.layers[static_cast<size_t>(layer)].moe;
  const auto stride = static_cast<int64_t>(kernels_->prepared_bytes(shape_.hidden));
  float* out = shared_out_.ensure(row_count_ * shape_.hidden);
  float* weight = shared_weight_.ensure(row_count_);
  const Product gate{weights.shared_expert_gate, prepared_.data(), nullptr, row_count_, weight, 1};
  multiply({&gate, 1});
  for (int64_t row = 0; row < row_count_; ++row) weight[row] = 1.0f / (1.0f + std::exp(-weight[row]));
  for (int64_t begin = 0; begin < row_count_; begin += kBlockRows)
    gated_mlp({weights.shared_gate, weights.shared_up, weights.shared_down}, prepared_.data() + begin * stride,
              std::min(kBlockRows, row_count_ - begin), out + begin * shape_.hidden);
}

void CpuBackend::experts(int64_t, const Routes& routes, std::span<const ExpertWork> work) {
  expert_rows_.clear();
  int64_t group_rows = 0;
  const auto flush = [&] {
    if (!expert_rows_.empty()) expert_group(expert_rows_, group_rows, routes.per_row);
    expert_rows_.clear();
    group_rows = 0;
  };
  for (const ExpertWork& expert : work) {
    for (size_t done = 0; done < expert.assignments.size();) {
      if (group_rows == kBlockRows) flush();
      const size_t count = std::min(expert.assignments.size() - done, static_cast<size_t>(kBlockRows - group_rows));
      expert_rows_.push_back(
          {expert.matrices, expert.assignments.subspan(done, count), outputs_used_, group_rows});
      done += count;
      group_rows += static_cast<int64_t>(count);
      outputs_used_ += static_cast<int64_t>(count);
    }
  }
  flush();
}

// Several experts together: their products are one list of work for the threads.
void CpuBackend::expert_group(std::span<const ExpertRows> group, int64_t row_count, int64_t k) {
  const int64_t inner = shape_.moe_inner;
  const auto stride = static_cast<int64_t>(kernels_->prepared_bytes(inner));
  float* gate = inner_.ensure(row_count * 2 * inner);
  float* up = gate + row_count * inner;
  uint8_t* prepared = prepared_mid_.ensure(row_count * stride);
  std::vector<int32_t>& rows = group_row_;
  rows.resize(static_cast<size_t>(row_count));
  products_.clear();
  for (const ExpertRows& expert : group) {
    const auto count = static_cast<int64_t>(expert.assignments.size());
    for (int64_t i = 0; i < count; ++i) {
      const int32_t assignment = expert.assignments[static_cast<size_t>(i)];
      rows[static_cast<size_t>(expert.inner_begin + i)] = assignment / static_cast<int32_t>(k);
      output_row_.data()[assignment] = static_cast<int32_t>(expert.output_begin + i);
    }
    const int32_t* x_rows = rows.data() + expert.inner_begin;
    products_.push_back({expert.matrices.gate, prepared_.data(), x_rows, count, gate + expert.inner_begin * inner, inner});
    products_.push_back({expert.matrices.up, prepared_.data(), x_rows, count, up + expert.inner_begin * inner, inner});
  }
  multiply(products_);
  pool_.run(row_count, [&](int64_t row) {
    kernels_->silu_mul(gate + row * inner, gate + row * inner, up + row * inner, inner);
    kernels_->prepare_row(gate + row * inner, inner, prepared + row * stride);
  });
  products_.clear();
  for (const ExpertRows& expert : group)
    products_.push_back({expert.matrices.down, prepared + expert.inner_begin * stride, nullptr,
                         static_cast<int64_t>(expert.assignments.size()),
                         expert_out_.data() + expert.output_begin * shape_.hidden, shape_.hidden});
  multiply(products_);
}

void CpuBackend::combine(int64_t, const Routes& routes) {
  const int64_t k = routes.per_row;
  FM_CHECK(outputs_used_ == row_count_ * k);
  float* sums = projected_.ensure(std::max<int64_t>(pool_.thread_count(), row_count_) * shape_.hidden);
  pool_.run(row_count_, [&](int64_t row) {
    float* sum = sums + row * shape_.hidden;
    std::fill_n(sum, shape_.hidden, 0.0f);
    for (int64_t rank = 0; rank < k; ++rank) {
      const int64_t assignment = row * k + rank;
      kernels_->axpy(sum, expert_out_.data() + output_row_.data()[assignment] * shape_.hidden,
                     routes.weights[static_cast<size_t>(assignment)], shape_.hidden);
    }
    if (shape_.shared_inner != 0)
      kernels_->axpy(sum, shared_out_.data() + row * shape_.hidden, shared_weight_.data()[row], shape_.hidden);
    kernels_->axpy(hidden_.data() + row * shape_.hidden, sum, 1.0f, shape_.hidden);
  });
}

void CpuBackend::dense_mlp(int64_t layer) {
  const LayerWeights& weights = weights_.layers[static_cast<size_t>(layer)];
  for (int64_t begin = 0; begin < row_count_; begin += kBlockRows) {
    const int64_t count = std::min(kBlockRows, row_count_ - begin);
    normalise_and_prepare(weights.post_norm, begin, count, prepared_.data());
    float* out = shared_out_.ensure(kBlockRows * shape_.hidden);
    gated_mlp(weights.dense, prepared_.data(), count, out);
    pool_.run(count, [&](int64_t row) {
      kernels_->axpy(hidden_.data() + (begin + row) * shape_.hidden, out + row * shape_.hidden, 1.0f, shape_.hidden);
    });
  }
}

}  // namespace flash_moe::backend
