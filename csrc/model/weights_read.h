#pragma once
// What carrying a ResidentPlan out takes: reads of tensors into one block of memory, and checks of what
// decides a result silently: a NaN or an infinity in a scale or a norm. weights_load.h runs them.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/weights.h"
#include "model/weights_plan.h"

namespace flash_moe::model {

// A piece of the reading that any thread may do, disjoint from all others; it may be run again after it threw IoError
// or FormatError.
struct ReadTask {
  int64_t stage = 0;   // of the plan, see weights_plan.h
  uint64_t bytes = 0;  // of the files
  std::function<void()> run;
};

// What fills `memory` (plan.bytes), by stage; all three arguments outlive the tasks.
std::vector<ReadTask> read_tasks(const ResidentPlan& plan, const std::vector<std::shared_ptr<io::File>>& files,
                                 uint8_t* memory);

// The weights as they lie in `memory`, read or not.
backend::ModelWeights resident_views(const ResidentPlan& plan, uint8_t* memory);

// FormatError naming `tensor` when one of `bytes` at `data` of that type is NaN or infinite. Dtype::u8 is read as the E8M0
// scales of mx formats.
void check_finite(const uint8_t* data, uint64_t bytes, Dtype dtype, const std::string& tensor);

// Elements of F32, BF16 or F16 as f32.
std::vector<float> widen_floats(const std::vector<uint8_t>& raw, Dtype dtype);

}  // namespace flash_moe::model
