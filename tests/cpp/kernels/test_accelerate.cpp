// Linear attention by BLAS: as the reference, to rounding. Without Accelerate the four functions that it calls are those
// of tests/cpp/not_apple.
#include "test.h"

#include <random>

#include "kernels/tables.h"
#if !defined(__APPLE__)
#include "kernels/kernels_accelerate.cpp"
#endif

using namespace flash_moe::kernels;

namespace {

std::vector<float> random_floats(int64_t n, uint32_t seed, float spread) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> made(static_cast<size_t>(n));
  for (float& value : made) value = normal(random);
  return made;
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i)
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return largest;
}

using StepFn = void (*)(const DeltaStepArgs&);

// The outputs of `steps` steps behind each other, then the state.
std::vector<float> recurrence(StepFn step, int64_t k_dim, int64_t v_dim, int steps, bool in_place) {
  std::vector<float> state = random_floats(v_dim * k_dim, 1, 1);
  std::vector<float> all, out(static_cast<size_t>(v_dim), NAN);
  for (int t = 0; t < steps; ++t) {
    const auto seed = static_cast<uint32_t>(10 * t);
    const auto q = random_floats(k_dim, seed + 2, 0.1f), k = random_floats(k_dim, seed + 3, 0.1f);
    const auto v = random_floats(v_dim, seed + 4, 1);
    std::vector<float> after(state.size(), NAN);
    float* to = in_place ? state.data() : after.data();
    step({state.data(), to, q.data(), k.data(), v.data(), 0.95f, 0.4f, k_dim, v_dim, out.data()});
    if (!in_place) state = after;
    all.insert(all.end(), out.begin(), out.end());
  }
  all.insert(all.end(), state.begin(), state.end());
  return all;
}

}  // namespace

TEST(a_recurrence_by_blas_is_the_reference_s_to_rounding) {
  const StepFn reference = reference_kernels(Precision::float32).delta_step;
  for (int64_t k_dim : {1, 5, 17, 128, 200}) {
    for (int64_t v_dim : {1, 3, 16, 128}) {
      const auto want = recurrence(reference, k_dim, v_dim, 30, true);
      for (bool in_place : {true, false}) {
        CHECK(largest_difference(recurrence(accelerate_delta_step, k_dim, v_dim, 30, in_place), want) < 2e-5);
      }
    }
  }
}

TEST(it_is_taken_by_name_only) {
  for (Precision precision : {Precision::float32, Precision::fast}) {
    CHECK(find_kernels("auto", precision)->has_reference_bits);
    const Kernels* named = find_kernels("accelerate", precision);
#if defined(__APPLE__) && defined(__aarch64__)
    CHECK(named != nullptr && !named->has_reference_bits && named->delta_step == accelerate_delta_step);
#else
    CHECK(named == nullptr);
#endif
  }
}
