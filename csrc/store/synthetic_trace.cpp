#include "store/synthetic_trace.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "flash_moe/error.h"

namespace flash_moe::store {
namespace {

// splitmix64: the standard library's distributions differ between systems.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t x = state_ += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
  }
  // In (0, 1).
  float uniform() { return (static_cast<float>(next() >> 40) + 0.5f) * 0x1p-24f; }
  // Nearly normal: the sum of four 16-bit uniform numbers, which is quick.
  float normal() {
    const uint64_t bits = next();
    const uint64_t sum =
        (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
    constexpr float deviation = 37837.0f;  // sqrt(4 / 12) * 65536
    return (static_cast<float>(sum) - 131070.0f) / deviation;
  }

 private:
  uint64_t state_;
};

// A stationary normal sequence whose correlation falls by exp(-1 / tokens) a step.
struct Drift {
  float keep;
  float renew;
  Drift(double deviation, double tokens)
      : keep(static_cast<float>(std::exp(-1 / tokens))),
        renew(static_cast<float>(deviation * std::sqrt(1 - std::exp(-2 / tokens)))) {}
};

}  // namespace

Trace synthetic_trace(const SyntheticRouting& routing) {
  if (routing.layers < 1 || routing.tokens < 0 || routing.experts_per_token < 1 ||
      routing.experts_per_token > routing.experts || !(routing.topic_tokens > 0) ||
      !(routing.context_tokens > 0)) {
    throw ConfigError("synthetic routing: wanted at least 1 layer and 1 to " +
                      std::to_string(routing.experts) + " experts a token, got " +
                      std::to_string(routing.layers) + " and " +
                      std::to_string(routing.experts_per_token));
  }
  const auto experts = static_cast<size_t>(routing.experts);
  const auto layers = static_cast<size_t>(routing.layers);
  const auto chosen = static_cast<ptrdiff_t>(routing.experts_per_token);
  Random random(routing.seed);
  std::vector<float> constant(layers * experts), topic(constant.size()), context(constant.size());
  for (size_t i = 0; i < constant.size(); ++i) {
    constant[i] = static_cast<float>(routing.skew) * random.normal();
    topic[i] = static_cast<float>(routing.topic) * random.normal();
    context[i] = static_cast<float>(routing.context) * random.normal();
  }
  const Drift slow(routing.topic, routing.topic_tokens);
  const Drift fast(routing.context, routing.context_tokens);
  std::vector<std::pair<float, int32_t>> scores(experts);
  Trace trace;
  trace.reserve(layers * static_cast<size_t>(routing.tokens));
  for (int32_t token = 0; token < routing.tokens; ++token) {
    for (size_t layer = 0; layer < layers; ++layer) {
      for (size_t expert = 0; expert < experts; ++expert) {
        const size_t i = layer * experts + expert;
        topic[i] = topic[i] * slow.keep + random.normal() * slow.renew;
        context[i] = context[i] * fast.keep + random.normal() * fast.renew;
        // The largest of logit + Gumbel noise is a draw by softmax of the logits.
        const float gumbel = -std::log(-std::log(random.uniform()));
        scores[expert] = {-(constant[i] + topic[i] + context[i] + gumbel),
                          static_cast<int32_t>(expert)};
      }
      std::partial_sort(scores.begin(), scores.begin() + chosen, scores.end());
      std::vector<int32_t>& row = trace.emplace_back();
      row.reserve(static_cast<size_t>(chosen) + 1);
      row.push_back(static_cast<int32_t>(layer));
      for (ptrdiff_t i = 0; i < chosen; ++i) row.push_back(scores[static_cast<size_t>(i)].second);
    }
  }
  return trace;
}

}  // namespace flash_moe::store
