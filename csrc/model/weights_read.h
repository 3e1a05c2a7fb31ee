#pragma once
// Carries a ResidentPlan out: reads tensors with several threads into one block of memory and checks what
// decides a result silently: a NaN or an infinity in a scale or a norm.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/weights.h"
#include "model/weights_plan.h"

namespace flash_moe::model {

// Called on the thread that loads, at the start, a few times a second and at the end; true stops, and the load throws
// CancelledError.
using ByteProgress = std::function<bool(uint64_t bytes_done, uint64_t bytes_total)>;

// Fills `memory` (plan.bytes) and returns the weights that point into it. Throws IoError, FormatError, CancelledError; then
// no thread of the load is left.
backend::ModelWeights read_resident(const ResidentPlan& plan, const std::vector<std::shared_ptr<io::File>>& files,
                                    uint8_t* memory, int thread_count, const ByteProgress& progress);

// FormatError naming `tensor` when one of `bytes` at `data` of that type is NaN or infinite. Dtype::u8 is read as the E8M0
// scales of mx formats.
void check_finite(const uint8_t* data, uint64_t bytes, Dtype dtype, const std::string& tensor);

// Elements of F32, BF16 or F16 as f32.
std::vector<float> widen_floats(const std::vector<uint8_t>& raw, Dtype dtype);

}  // namespace flash_moe::model
