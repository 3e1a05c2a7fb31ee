// Router, routed experts, shared expert, dense MLP (docs/MODEL.md section 4).
#include <algorithm>
#include <cstring>

#import "backend/metal/metal_backend.h"
#include "base/check.h"

namespace flash_moe::backend {
void MetalBackend::select(const MetalRows& logits, MetalBuffer ids, MetalBuffer weights) {
  namespace b = metal::buffers::router_topk;
  commands_->use(kernels_.router_topk);
  commands_->bind(b::logits, logits.at());
  commands_->bind(b::ids, ids);
  commands_->bind(b::weights, weights);
  commands_->bind_args(b::args, metal::RouterArgs{to_u32(shape_.experts), to_u32(experts_per_token_),
                                                  shape_.norm_topk_prob ? 1u : 0u});
  commands_->dispatch_groups({static_cast<size_t>(row_count_)}, metal::head_threads);
}

// The one wait of a layer.
void MetalBackend::read_routes(MetalBuffer ids, MetalBuffer weights, Routes& routes) const {
  commands_->finish();
  const auto count = static_cast<size_t>(row_count_ * experts_per_token_);
  routes.row_count = row_count_;
  routes.per_row = experts_per_token_;
  routes.ids.resize(count);
  routes.weights.resize(count);
  std::memcpy(routes.ids.data(), ids.contents, count * sizeof(int32_t));
  std::memcpy(routes.weights.data(), weights.contents, count * sizeof(float));
  routes.logits = {router_logits_.floats(), static_cast<size_t>(row_count_ * shape_.experts)};
}

void MetalBackend::route(int64_t layer, Routes& routes) {
  const Layer& weights = layers_[static_cast<size_t>(layer)];
  const int64_t k = experts_per_token_;
  const MetalRows x{x_.buffer(), 0, shape_.hidden};
  const MetalRows logits{router_logits_.ensure(*device_, row_count_ * shape_.experts), 0, shape_.experts};
  MetalBuffer ids = ids_.ensure(*device_, row_count_ * k);
  MetalBuffer route_weights = route_weights_.ensure(*device_, row_count_ * k);
  commands_->barrier();
  normalise(weights.post_norm, hidden_rows(), row_count_, x);
  commands_->barrier();
  multiply(weights.router, x, row_count_, logits);
  commands_->barrier();
  select(logits, ids, route_weights);
  read_routes(ids, route_weights, routes);
  outputs_encoded_ = 0;
  expert_out_.ensure(*device_, row_count_ * k * shape_.hidden);
  expert_inner_.ensure(*device_, row_count_ * k * shape_.moe_inner);
}

void MetalBackend::guess_routes(int64_t layer, Routes& routes) {
  const Layer& weights = layers_[static_cast<size_t>(layer)];
  const MetalRows x{normed_.ensure(*device_, row_count_ * shape_.hidden), 0, shape_.hidden};
  const MetalRows logits{router_logits_.ensure(*device_, row_count_ * shape_.experts), 0, shape_.experts};
  MetalBuffer ids = guess_ids_.ensure(*device_, row_count_ * experts_per_token_);
  MetalBuffer guess_weights = guess_weights_.ensure(*device_, row_count_ * experts_per_token_);
  commands_->barrier();
  normalise(weights.post_norm, hidden_rows(), row_count_, x);
  commands_->barrier();
  multiply(weights.router, x, row_count_, logits);
  commands_->barrier();
  select(logits, ids, guess_weights);
  read_routes(ids, guess_weights, routes);
}

// y (+)= down(silu(gate x) * up x)
void MetalBackend::gated_mlp(const MlpMatrices& m, const MetalRows& x, int64_t row_count, const MetalRows& y, bool add) {
  const int64_t inner_width = m.gate.rows;
  const bool wide = is_wide();
  const MetalRows inner{inner_.ensure(*device_, row_count * inner_width * (wide ? 2 : 1)), 0, inner_width};
  if (wide) {
    namespace b = metal::buffers::silu_mul;
    const MetalRows up{inner.buffer, row_count * inner_width, inner_width};
    multiply(m.gate, x, row_count, inner);
    multiply(m.up, x, row_count, up);
    commands_->barrier();
    commands_->use(kernels_.silu_mul);
    commands_->bind(b::gate, inner.at());
    commands_->bind(b::up, up.at());
    commands_->bind(b::y, inner.at());
    commands_->bind_args(b::args, metal::ElementArgs{to_u32(row_count * inner_width)});
    commands_->dispatch_threads({static_cast<size_t>(row_count * inner_width)}, {256});
  } else {
    namespace b = metal::buffers::gated_matvec;
    commands_->use(m.gated);
    commands_->bind(b::gate_data, m.gate.data);
    commands_->bind(b::gate_scales, m.gate.scales);
    commands_->bind(b::gate_biases, m.gate.biases);
    commands_->bind(b::up_data, m.up.data);
    commands_->bind(b::up_scales, m.up.scales);
    commands_->bind(b::up_biases, m.up.biases);
    commands_->bind(b::x, x.at());
    commands_->bind(b::y, inner.at());
    commands_->bind_args(b::args, metal::MatvecArgs{m.gate.rows, m.gate.cols, to_u32(row_count), to_u32(x.stride),
                                                    to_u32(inner_width), 0});
    commands_->dispatch_groups({groups_of(inner_width, metal::matvec_out_rows), groups_of(row_count, metal::matvec_x_rows)},
                               metal::matvec_threads);
  }
  commands_->barrier();
  multiply(m.down, inner, row_count, y, add);
}

void MetalBackend::shared_expert(int64_t layer) {
  if (shape_.shared_inner == 0) return;
  const Layer& weights = layers_[static_cast<size_t>(layer)];
  shared_out_.ensure(*device_, row_count_ * shape_.hidden);
  commands_->barrier();
  multiply(weights.shared_expert_gate, {x_.buffer(), 0, shape_.hidden}, row_count_,
           {shared_gate_.ensure(*device_, row_count_), 0, 1});
  for (int64_t begin = 0; begin < row_count_; begin += kBlockRows) {
    if (begin != 0) commands_->barrier();
    gated_mlp(weights.mlp, {x_.buffer(), begin * shape_.hidden, shape_.hidden}, std::min(kBlockRows, row_count_ - begin),
              {shared_out_.buffer(), begin * shape_.hidden, shape_.hidden}, false);
  }
  commands_->commit();  // runs while the host looks for the experts
}

void MetalBackend::add_expert(const ExpertWork& work, bool tiles) {
  const ExpertMatrices& m = work.matrices;
  const ExpertKernels& kernels = expert_kernels(m);
  const auto offset = [&](const uint8_t* address, int64_t bytes, uint64_t otherwise, MetalBuffer __strong* buffer) {
    if (!address) return otherwise;
    const MetalPlace at = regions_.find(address, static_cast<size_t>(bytes));
    *buffer = at.buffer;
    return static_cast<uint64_t>(at.offset);
  };
  MetalBuffer arena;
  metal::ExpertPlace p;
  p.gate_data = offset(m.gate.data, m.gate.data_bytes(), 0, &arena);
  p.gate_scales = offset(m.gate.scales, m.gate.scales_bytes(), p.gate_data, &arena);
  p.gate_biases = offset(m.gate.biases, m.gate.scales_bytes(), p.gate_data, &arena);
  p.up_data = offset(m.up.data, m.up.data_bytes(), 0, &arena);
  p.up_scales = offset(m.up.scales, m.up.scales_bytes(), p.up_data, &arena);
  p.up_biases = offset(m.up.biases, m.up.scales_bytes(), p.up_data, &arena);
  p.down_data = offset(m.down.data, m.down.data_bytes(), 0, &arena);
  p.down_scales = offset(m.down.scales, m.down.scales_bytes(), p.down_data, &arena);
  p.down_biases = offset(m.down.biases, m.down.scales_bytes(), p.down_data, &arena);
  auto group = std::find_if(expert_groups_.begin(), expert_groups_.end(),
                            [&](const ExpertGroup& g) { return g.arena == arena && g.kernels == &kernels; });
  if (group == expert_groups_.end()) {
    expert_groups_.push_back({arena, &kernels, {}, {}, {}, 0});
    group = expert_groups_.end() - 1;
  }
  const size_t item_rows = tiles ? metal::matmul_x_rows : metal::matvec_x_rows;
  for (size_t done = 0; done < work.assignments.size(); done += item_rows) {
    const size_t count = std::min(item_rows, work.assignments.size() - done);
    group->items.push_back({static_cast<uint32_t>(group->places.size()),
                            static_cast<uint32_t>(group->assignments.size() + done), static_cast<uint32_t>(count)});
  }
  group->assignments.insert(group->assignments.end(), work.assignments.begin(), work.assignments.end());
  group->places.push_back(p);
}

void MetalBackend::encode_expert_group(const ExpertGroup& group, const Routes& routes, bool tiles, bool down) {
  namespace b = metal::buffers::expert_gate_up;  // expert_down has the same indices
  const MetalPlace inner{expert_inner_.buffer(), static_cast<size_t>(group.inner_begin * shape_.moe_inner) * sizeof(float)};
  if (down) {
    commands_->use(tiles ? group.kernels->down_tiles : group.kernels->down_rows);
  } else {
    commands_->use(tiles ? group.kernels->gate_up_tiles : group.kernels->gate_up_rows);
  }
  commands_->bind(b::arena, group.arena);
  commands_->bind_bytes(b::places, group.places.data(), group.places.size() * sizeof(metal::ExpertPlace));
  commands_->bind_bytes(b::items, group.items.data(), group.items.size() * sizeof(metal::ExpertItem));
  commands_->bind_bytes(b::assignments, group.assignments.data(), group.assignments.size() * sizeof(int32_t));
  if (down) {
    static_assert(int{metal::buffers::expert_down::inner} == int{b::x} && int{metal::buffers::expert_down::outputs} == int{b::inner});
    commands_->bind(metal::buffers::expert_down::inner, inner);
    commands_->bind(metal::buffers::expert_down::outputs, expert_out_.buffer());
  } else {
    commands_->bind(b::x, x_.buffer());
    commands_->bind(b::inner, inner);
  }
  commands_->bind_args(b::args, metal::ExpertArgs{to_u32(shape_.hidden), to_u32(shape_.moe_inner), to_u32(routes.per_row)});
  const int64_t outputs = down ? shape_.hidden : shape_.moe_inner;
  commands_->dispatch_groups({groups_of(outputs, tiles ? metal::matmul_out_rows : metal::matvec_out_rows), group.items.size()},
                             tiles ? metal::matmul_threads : metal::matvec_threads);
}

void MetalBackend::experts(int64_t, const Routes& routes, std::span<const ExpertWork> work) {
  if (work.empty()) return;
  const bool tiles = is_wide();
  expert_groups_.clear();
  for (const ExpertWork& expert : work) add_expert(expert, tiles);
  commands_->barrier();
  for (ExpertGroup& group : expert_groups_) {
    group.inner_begin = outputs_encoded_;
    outputs_encoded_ += static_cast<int64_t>(group.assignments.size());
    encode_expert_group(group, routes, tiles, false);
  }
  commands_->barrier();
  for (const ExpertGroup& group : expert_groups_) encode_expert_group(group, routes, tiles, true);
  experts_number_ = commands_->commit();  // runs while the host reads those that were missing
}

void MetalBackend::wait_experts() { commands_->wait(experts_number_); }

// With the next layer's norm in the same kernel, where there is a next layer.
void MetalBackend::combine(int64_t layer, const Routes& routes) {
  namespace b = metal::buffers::combine_norm;  // combine is its beginning
  FM_CHECK(outputs_encoded_ == row_count_ * routes.per_row);
  const bool has_next = layer + 1 < shape_.layer_count();
  const bool has_shared = shape_.shared_inner != 0;
  commands_->barrier();
  commands_->use(has_next ? kernels_.combine_norm : kernels_.combine);
  commands_->bind(b::h, hidden_.buffer());
  commands_->bind(b::outputs, expert_out_.buffer());
  commands_->bind(b::weights, route_weights_.buffer());
  commands_->bind(b::shared, has_shared ? shared_out_.buffer() : expert_out_.buffer());
  commands_->bind(b::shared_gate, has_shared ? shared_gate_.buffer() : expert_out_.buffer());
  commands_->bind_args(b::args, metal::CombineArgs{to_u32(shape_.hidden), to_u32(routes.per_row), has_shared ? 1u : 0u,
                                                   shape_.rms_eps});
  if (has_next) {
    commands_->bind(b::norm, layers_[static_cast<size_t>(layer + 1)].input_norm);
    commands_->bind(b::x, x_.buffer());
    normed_layer_ = layer + 1;
  }
  commands_->dispatch_groups({static_cast<size_t>(row_count_)}, metal::row_threads);
}

void MetalBackend::dense_mlp(int64_t layer) {
  const Layer& weights = layers_[static_cast<size_t>(layer)];
  const MetalRows x{x_.buffer(), 0, shape_.hidden};
  commands_->barrier();
  normalise(weights.post_norm, hidden_rows(), row_count_, x);
  commands_->barrier();
  for (int64_t begin = 0; begin < row_count_; begin += kBlockRows) {
    if (begin != 0) commands_->barrier();
    gated_mlp(weights.mlp, {x_.buffer(), begin * shape_.hidden, shape_.hidden}, std::min(kBlockRows, row_count_ - begin),
              hidden_rows(begin), true);
  }
}

}  // namespace flash_moe::backend
