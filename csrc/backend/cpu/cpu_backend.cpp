// Memory, steps, products and the head; mixers are in cpu_mixer.cpp, experts in cpu_moe.cpp.
#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "flash_moe/error.h"
#include "kernels/fetch_ahead.h"
#include "kernels/rope.h"

namespace flash_moe::backend {
namespace {

// Large enough to hide the cost of taking an item, small enough to share a product over threads.
constexpr int64_t kItemBytes = 64 << 10;
constexpr int64_t kItemRowsMin = 16;

class HostMemory final : public DeviceMemory {
 public:
  explicit HostMemory(size_t bytes) : memory_(bytes, HugePages::if_possible) {}
  uint8_t* data() const override { return memory_.data(); }
  size_t bytes() const override { return memory_.size_bytes(); }

 private:
  AlignedMemory memory_;
};

}  // namespace

CpuBackend::CpuBackend(const BackendOptions& options)
    : kernels_(kernels::find_kernels(options.isa.c_str(), options.precision)),
      kv_is_bf16_(options.kv_is_bf16),
      pool_(options.thread_count > 0 ? options.thread_count : usable_core_count()) {
  if (kernels_ == nullptr) {
    std::string known;
    for (auto table = kernels::available_kernels(options.precision); *table; ++table)
      known += std::string(known.empty() ? "" : ", ") + (*table)->name;
    throw ConfigError("isa=\"" + options.isa + "\": this machine has " + known + " and auto");
  }
}

std::string CpuBackend::description() const {
  return "cpu: " + std::string(kernels_->name) + ", " + std::to_string(pool_.thread_count()) +
         (pool_.thread_count() == 1 ? " thread" : " threads");
}

std::unique_ptr<DeviceMemory> CpuBackend::allocate(size_t bytes) { return std::make_unique<HostMemory>(bytes); }

std::unique_ptr<SlotArena> CpuBackend::allocate_slots(size_t slot_bytes, size_t slot_count) {
  return std::make_unique<HostSlotArena>(slot_bytes, slot_count);
}

void CpuBackend::set_shape(const ModelShape& shape, int64_t experts_per_token) {
  shape_ = shape;
  experts_per_token_ = experts_per_token;
  rope_frequencies_.resize(static_cast<size_t>(shape_.rotary_dim / 2));
  kernels::rope_frequencies(rope_frequencies_.data(), shape_.rotary_dim, shape_.rope_theta);
}

void CpuBackend::set_weights(const ModelWeights& weights) { weights_ = weights; }

std::unique_ptr<Sequence> CpuBackend::new_sequence() {
  return std::make_unique<CpuSequence>(shape_, kv_is_bf16_);
}

uint64_t CpuBackend::sequence_bytes(int64_t position) const {
  return CpuSequence::bytes_at(shape_, kv_is_bf16_, position);
}

uint64_t CpuBackend::step_bytes(int64_t row_count) const {
  const int64_t k = experts_per_token_;
  const auto prepared = [&](int64_t cols) { return static_cast<int64_t>(kernels_->prepared_bytes(cols)); };
  const int64_t per_row =
      shape_.hidden * 4 * (2 + k) + shape_.rotary_dim * 4 + prepared(shape_.hidden) + 4 * (k + 1);
  const int64_t attention_in = shape_.heads * shape_.head_dim * (shape_.attention_gate ? 2 : 1) +
                               2 * shape_.kv_heads * shape_.head_dim;
  const int64_t delta_in = shape_.conv_channels() + shape_.linear_v_width() + 2 * shape_.linear_v_heads;
  const int64_t mid = std::max(shape_.heads * shape_.head_dim, shape_.linear_v_width());
  const int64_t inner = std::max({shape_.moe_inner, shape_.shared_inner, shape_.dense_inner});
  const int64_t block = 4 * (std::max(attention_in, delta_in) + shape_.conv_channels() + mid +
                             std::max(shape_.hidden, shape_.experts) + 2 * inner) +
                        std::max(prepared(mid), prepared(inner));
  return static_cast<uint64_t>(row_count * per_row + std::min(row_count * std::max<int64_t>(k, 1), kBlockRows) * block);
}

void CpuBackend::trim_step(int64_t row_count) {
  const int64_t k = std::max<int64_t>(experts_per_token_, 1);
  hidden_.trim(row_count * shape_.hidden);
  rope_.trim(row_count * shape_.rotary_dim);
  prepared_.trim(row_count * static_cast<int64_t>(kernels_->prepared_bytes(shape_.hidden)));
  expert_out_.trim(row_count * k * shape_.hidden);
  output_row_.trim(row_count * k);
  shared_out_.trim(row_count * shape_.hidden);
  if (row_count * k < kBlockRows) {
    for (Scratch<float>* scratch : {&mixer_in_, &mixer_mid_, &mixer_out_, &projected_, &inner_, &attention_scores_})
      scratch->trim(0);
    prepared_mid_.trim(0);
  }
}

void CpuBackend::begin(const Step& step) {
  tokens_.assign(step.tokens.begin(), step.tokens.end());
  spans_.assign(step.spans.begin(), step.spans.end());
  row_count_ = static_cast<int64_t>(tokens_.size());
  split_into_passes();
  compute_angles();
  float* hidden = hidden_.ensure(row_count_ * shape_.hidden);
  prepared_.ensure(row_count_ * static_cast<int64_t>(kernels_->prepared_bytes(shape_.hidden)));
  pool_.run(row_count_, [&](int64_t row) {
    kernels_->dequantise_row(hidden + row * shape_.hidden, weights_.embedding, tokens_[static_cast<size_t>(row)]);
  });
}

void CpuBackend::split_into_passes() {
  blocks_.clear();
  passes_.clear();
  std::vector<size_t> firsts;  // first block of each pass
  int64_t room = 0;
  for (const Span& span : spans_) {
    auto* sequence = static_cast<CpuSequence*>(span.sequence);
    FM_CHECK(sequence->position() + span.row_count <= shape_.context);
    for (int64_t done = 0; done < span.row_count;) {
      if (room == 0) {
        firsts.push_back(blocks_.size());
        room = kBlockRows;
      }
      const int64_t count = std::min(room, span.row_count - done);
      blocks_.push_back({sequence, span.row_begin + done, count, sequence->position() + done});
      done += count;
      room -= count;
    }
  }
  for (size_t i = 0; i < firsts.size(); ++i) {
    const size_t end = i + 1 < firsts.size() ? firsts[i + 1] : blocks_.size();
    const int64_t begin = blocks_[firsts[i]].begin;
    passes_.push_back({begin, blocks_[end - 1].begin + blocks_[end - 1].count - begin,
                       std::span<const Block>(blocks_).subspan(firsts[i], end - firsts[i])});
  }
}

void CpuBackend::compute_angles() {
  float* angles = rope_.ensure(row_count_ * shape_.rotary_dim);
  for (const Block& block : blocks_) {
    pool_.run(block.count, [&](int64_t row) {
      float* cos = angles + (block.begin + row) * shape_.rotary_dim;
      kernels::rope_angles(cos, cos + shape_.rotary_dim / 2, rope_frequencies_.data(), shape_.rotary_dim,
                           block.position + row);
    });
  }
}

void CpuBackend::end() {
  for (const Span& span : spans_) static_cast<CpuSequence*>(span.sequence)->advance(span.row_count);
}

void CpuBackend::multiply(std::span<const Product> products) {
  items_.clear();
  for (uint32_t p = 0; p < products.size(); ++p) {
    const Product& product = products[p];
    const int64_t row_bytes = std::max<int64_t>(product.matrix.row_bytes(), 1);
    const int64_t out_rows = std::max(kItemRowsMin, kItemBytes / row_bytes / kItemRowsMin * kItemRowsMin);
    for (int64_t row = 0; row < product.row_count; row += kBlockRows)
      for (int64_t out = 0; out < product.matrix.rows; out += out_rows)
        items_.push_back({p, row, std::min(kBlockRows, product.row_count - row), out,
                          std::min(out + out_rows, product.matrix.rows)});
  }
  pool_.run(static_cast<int64_t>(items_.size()), [&](int64_t i) {
    const Item& item = items_[static_cast<size_t>(i)];
    const Product& product = products[item.product];
    const size_t x_stride = kernels_->prepared_bytes(product.matrix.cols);
    kernels::MatmulArgs args;
    args.matrix = product.matrix;
    args.x = product.x_rows ? product.x : product.x + static_cast<size_t>(item.row_begin) * x_stride;
    args.x_stride = x_stride;
    args.x_rows = product.x_rows ? product.x_rows + item.row_begin : nullptr;
    args.row_count = item.row_count;
    args.y = product.y + item.row_begin * product.y_stride;
    args.y_stride = product.y_stride;
    args.out_begin = item.out_begin;
    args.out_end = item.out_end;
    // This thread's next item, most likely; within a matrix the kernel itself runs ahead.
    const Item* const next = &item == &items_.back() ? nullptr : &item + 1;
    if (item.row_count == 1 && next && next->product != item.product) kernels::fetch_beginning(products[next->product].matrix);
    kernels_->matmul(args);
  });
}

void CpuBackend::prepare_rows(const float* x, int64_t x_stride, int64_t cols, int64_t row_count, uint8_t* prepared) {
  const size_t stride = kernels_->prepared_bytes(cols);
  pool_.run(row_count, [&](int64_t row) {
    kernels_->prepare_row(x + row * x_stride, cols, prepared + static_cast<size_t>(row) * stride);
  });
}

// prepared[r] = prepare(norm(h[row_begin + r]))
void CpuBackend::normalise_and_prepare(const float* weight, int64_t row_begin, int64_t row_count, uint8_t* prepared) {
  const size_t stride = kernels_->prepared_bytes(shape_.hidden);
  float* normed = projected_.ensure(std::max(row_count, kBlockRows) * std::max(shape_.hidden, shape_.experts));
  pool_.run(row_count, [&](int64_t row) {
    float* y = normed + row * shape_.hidden;
    kernels_->rms_norm(y, hidden_.data() + (row_begin + row) * shape_.hidden, weight, shape_.rms_eps, shape_.hidden);
    kernels_->prepare_row(y, shape_.hidden, prepared + static_cast<size_t>(row) * stride);
  });
}

// h[row_begin + r] += matrix * prepared[r]
void CpuBackend::add_product(const Matrix& matrix, const uint8_t* prepared, int64_t row_begin, int64_t row_count) {
  float* out = projected_.ensure(row_count * shape_.hidden);
  const Product product{matrix, prepared, nullptr, row_count, out, shape_.hidden};
  multiply({&product, 1});
  pool_.run(row_count, [&](int64_t row) {
    kernels_->axpy(hidden_.data() + (row_begin + row) * shape_.hidden, out + row * shape_.hidden, 1.0f, shape_.hidden);
  });
}

void CpuBackend::logits(std::span<const int32_t> rows, float* out) {
  const size_t stride = kernels_->prepared_bytes(shape_.hidden);
  for (size_t done = 0; done < rows.size(); done += static_cast<size_t>(kBlockRows)) {
    const auto count = std::min<int64_t>(kBlockRows, static_cast<int64_t>(rows.size() - done));
    uint8_t* prepared = prepared_mid_.ensure(count * static_cast<int64_t>(stride));
    float* normed = projected_.ensure(count * shape_.hidden);
    pool_.run(count, [&](int64_t i) {
      float* y = normed + i * shape_.hidden;
      const int64_t row = rows[done + static_cast<size_t>(i)];
      kernels_->rms_norm(y, hidden_.data() + row * shape_.hidden, weights_.final_norm, shape_.rms_eps, shape_.hidden);
      kernels_->prepare_row(y, shape_.hidden, prepared + static_cast<size_t>(i) * stride);
    });
    const Product product{weights_.head, prepared, nullptr, count, out + static_cast<int64_t>(done) * shape_.vocab,
                          shape_.vocab};
    multiply({&product, 1});
  }
}

std::unique_ptr<Backend> create_cpu_backend(const BackendOptions& options) {
  return std::make_unique<CpuBackend>(options);
}

}  // namespace flash_moe::backend
