#include "io/fault_plan.h"

#include <cerrno>

namespace flash_moe::io {

FaultPlan::Attempt FailNthRead::next_attempt() {
  Attempt attempt;
  if (attempts_.fetch_add(1, std::memory_order_relaxed) + 1 == nth_) attempt.error = EIO;
  return attempt;
}

}  // namespace flash_moe::io
