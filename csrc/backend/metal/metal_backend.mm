// Memory, steps, products and the head; weights are in metal_weights.mm, mixers in metal_mixer.mm, experts in metal_moe.mm.
#import "backend/metal/metal_backend.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "flash_moe/error.h"
#include "kernels/rope.h"

namespace flash_moe::backend {
namespace {

constexpr int64_t kLogitRows = 16;  // rows of logits computed together



}  // namespace

MetalBuffer MetalScratch::ensure(MetalDevice& device, int64_t floats) {
  const size_t bytes = std::max<size_t>(static_cast<size_t>(floats) * sizeof(float), 16);
  if (!buffer_ || buffer_.length < bytes) buffer_ = device.new_buffer(bytes);
  return buffer_;
}

void MetalScratch::trim(int64_t floats) {
  if (buffer_ && buffer_.length > static_cast<size_t>(floats) * sizeof(float) + kMetalPageBytes) buffer_ = nil;
}

MetalBackend::MetalBackend(const BackendOptions& options)
    : device_(std::make_shared<MetalDevice>()),
      commands_(std::make_shared<MetalCommands>(device_)),
      kv_is_bf16_(options.kv_is_bf16),
      is_fast_(options.precision == kernels::Precision::fast) {}

std::string MetalBackend::description() const {
  return "metal: " + device_->name() + (is_fast_ ? ", fast" : ", float32");
}

uint64_t MetalBackend::memory_bytes_max() const {
  return static_cast<uint64_t>(device_->device().recommendedMaxWorkingSetSize);
}

std::unique_ptr<DeviceMemory> MetalBackend::allocate(size_t bytes) {
  return std::make_unique<MetalMemory>(*device_, regions_, bytes);
}

std::unique_ptr<SlotArena> MetalBackend::allocate_slots(size_t slot_bytes, size_t slot_count) {
  return std::make_unique<MetalSlotArena>(*device_, regions_, slot_bytes, slot_count);
}

std::unique_ptr<Sequence> MetalBackend::new_sequence() {
  return std::make_unique<MetalSequence>(commands_, shape_, kv_is_bf16_);
}

uint64_t MetalBackend::sequence_bytes(int64_t position) const {
  return MetalSequence::bytes_at(shape_, kv_is_bf16_, position);
}

uint64_t MetalBackend::step_bytes(int64_t row_count) const {
  const int64_t k = experts_per_token_;
  const int64_t per_row = shape_.hidden * (3 + k) + shape_.rotary_dim + k * (shape_.moe_inner + 4) + shape_.experts + 1;
  const int64_t attention_in = shape_.heads * shape_.head_dim * (shape_.attention_gate ? 2 : 1) +
                               2 * shape_.kv_heads * shape_.head_dim;
  const int64_t delta_in = 2 * shape_.conv_channels() + shape_.linear_v_width() + 2 * shape_.linear_v_heads;
  const int64_t mid = std::max(shape_.heads * shape_.head_dim, shape_.linear_v_width());
  const int64_t inner = 2 * std::max(shape_.shared_inner, shape_.dense_inner);
  const int64_t block = std::max(attention_in, delta_in) + mid + inner;
  const int64_t head = std::min(row_count, kLogitRows) * (shape_.hidden + shape_.vocab);
  return static_cast<uint64_t>(4 * (row_count * per_row + std::min(row_count, kBlockRows) * block + head));
}

void MetalBackend::trim_step(int64_t row_count) {
  const int64_t k = std::max<int64_t>(experts_per_token_, 1);
  for (MetalScratch* scratch : {&hidden_, &x_, &shared_out_}) scratch->trim(row_count * shape_.hidden);
  expert_out_.trim(row_count * k * shape_.hidden);
  expert_inner_.trim(row_count * k * shape_.moe_inner);
  if (row_count < kBlockRows)
    for (MetalScratch* scratch : {&mixer_in_, &mixer_out_, &partials_, &stats_, &inner_, &router_logits_, &angles_})
      scratch->trim(0);
}

void MetalBackend::begin(const Step& step) {
  commands_->abandon();  // of a step that an error ended
  tokens_.assign(step.tokens.begin(), step.tokens.end());
  spans_.assign(step.spans.begin(), step.spans.end());
  row_count_ = static_cast<int64_t>(tokens_.size());
  is_prefill_ = step.is_prefill;
  normed_layer_ = -1;
  for (const Span& span : spans_) {
    auto* sequence = static_cast<MetalSequence*>(span.sequence);
    FM_CHECK(sequence->position() + span.row_count <= shape_.context);
    sequence->reserve(sequence->position() + span.row_count);
  }
  split_into_passes();
  hidden_.ensure(*device_, row_count_ * shape_.hidden);
  x_.ensure(*device_, row_count_ * shape_.hidden);
  compute_angles();
  embed_tokens();
}

void MetalBackend::embed_tokens() {
  namespace b = metal::buffers::embed;
  commands_->use(kernels_.embed);
  commands_->bind(b::data, embedding_.data);
  commands_->bind(b::scales, embedding_.scales);
  commands_->bind(b::biases, embedding_.biases);
  commands_->bind_bytes(b::tokens, tokens_.data(), tokens_.size() * sizeof(int32_t));
  commands_->bind(b::y, hidden_.buffer());
  commands_->bind_args(b::args, metal::EmbedArgs{to_u32(shape_.hidden), to_u32(row_count_)});
  commands_->dispatch_threads({static_cast<size_t>(shape_.hidden), static_cast<size_t>(row_count_)}, {32});
}

void MetalBackend::split_into_passes() {
  blocks_.clear();
  passes_.clear();
  std::vector<size_t> firsts;  // first block of each pass
  int64_t room = 0;
  for (const Span& span : spans_) {
    auto* sequence = static_cast<MetalSequence*>(span.sequence);
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

// On the host, in double, as the CPU backend does. Nothing in flight reads the last step's angles: `end` waited.
void MetalBackend::compute_angles() {
  MetalBuffer buffer = angles_.ensure(*device_, row_count_ * shape_.rotary_dim);
  if (shape_.rotary_dim == 0) return;
  host_angles_.resize(static_cast<size_t>(row_count_ * shape_.rotary_dim));
  for (const Block& block : blocks_) {
    for (int64_t row = 0; row < block.count; ++row) {
      float* cos = host_angles_.data() + (block.begin + row) * shape_.rotary_dim;
      kernels::rope_angles(cos, cos + shape_.rotary_dim / 2, rope_frequencies_.data(), shape_.rotary_dim,
                           block.position + row);
    }
  }
  std::memcpy(buffer.contents, host_angles_.data(), host_angles_.size() * sizeof(float));
}

void MetalBackend::end() {
  commands_->finish();
  for (const Span& span : spans_) static_cast<MetalSequence*>(span.sequence)->advance(span.row_count);
}

// y (+)= matrix x, for each row.
void MetalBackend::multiply(const MetalMatrix& matrix, const MetalRows& x, int64_t row_count, const MetalRows& y, bool add) {
  namespace b = metal::buffers::matvec;
  const bool wide = is_wide();
  commands_->use(wide ? matrix.matmul : matrix.matvec);
  commands_->bind(b::data, matrix.data);
  commands_->bind(b::scales, matrix.scales);
  commands_->bind(b::biases, matrix.biases);
  commands_->bind(b::x, x.at());
  commands_->bind(b::y, y.at());
  commands_->bind_args(b::args, metal::MatvecArgs{matrix.rows, matrix.cols, to_u32(row_count), to_u32(x.stride),
                                                  to_u32(y.stride), add ? 1u : 0u});
  const int64_t out_tile = wide ? metal::matmul_out_rows : metal::matvec_out_rows;
  const int64_t x_tile = wide ? metal::matmul_x_rows : metal::matvec_x_rows;
  commands_->dispatch_groups({groups_of(matrix.rows, out_tile), groups_of(row_count, x_tile)},
                             wide ? metal::matmul_threads : metal::matvec_threads);
}

// y[i] = norm(x[rows[i]]), or of x[i] without rows; both dense.
void MetalBackend::normalise(const MetalPlace& weight, const MetalRows& x, int64_t row_count, const MetalRows& y,
                             std::span<const int32_t> rows) {
  namespace b = metal::buffers::rms_norm;
  constexpr int32_t kNoRows = 0;
  commands_->use(kernels_.rms_norm);
  commands_->bind(b::x, x.at());
  commands_->bind(b::weight, weight);
  commands_->bind(b::y, y.at());
  commands_->bind_bytes(b::rows, rows.empty() ? &kNoRows : rows.data(), std::max<size_t>(rows.size(), 1) * sizeof(int32_t));
  commands_->bind_args(b::args, metal::NormArgs{to_u32(shape_.hidden), rows.empty() ? 0u : 1u, shape_.rms_eps});
  commands_->dispatch_groups({static_cast<size_t>(row_count)}, metal::row_threads);
}

void MetalBackend::logits(std::span<const int32_t> rows, float* out) {
  for (size_t done = 0; done < rows.size(); done += static_cast<size_t>(kLogitRows)) {
    const auto count = std::min<int64_t>(kLogitRows, static_cast<int64_t>(rows.size() - done));
    const MetalRows normed{normed_.ensure(*device_, count * shape_.hidden), 0, shape_.hidden};
    const MetalRows y{logits_.ensure(*device_, count * shape_.vocab), 0, shape_.vocab};
    commands_->barrier();
    normalise(final_norm_, hidden_rows(), count, normed, rows.subspan(done, static_cast<size_t>(count)));
    commands_->barrier();
    multiply(head_, normed, count, y);
    commands_->finish();
    std::memcpy(out + static_cast<int64_t>(done) * shape_.vocab, logits_.floats(),
                static_cast<size_t>(count * shape_.vocab) * sizeof(float));
  }
}

std::string metal_unavailable_reason() { return metal_device_reason(); }

std::unique_ptr<Backend> create_metal_backend(const BackendOptions& options) {
  return std::make_unique<MetalBackend>(options);
}

}  // namespace flash_moe::backend
