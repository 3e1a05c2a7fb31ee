#include "store/synthetic_trace.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "flash_moe/error.h"
#include "test.h"

using flash_moe::ConfigError;
using flash_moe::store::simulate;
using flash_moe::store::synthetic_trace;
using flash_moe::store::SyntheticRouting;
using flash_moe::store::Trace;

namespace {

SyntheticRouting small() {
  SyntheticRouting routing;
  routing.layers = 3;
  routing.experts = 64;
  routing.experts_per_token = 4;
  routing.tokens = 200;
  return routing;
}

}  // namespace

TEST(rows_are_distinct_experts_of_layers_in_turn) {
  const Trace trace = synthetic_trace(small());
  CHECK(trace.size() == 600);
  for (size_t row = 0; row < trace.size(); ++row) {
    CHECK(trace[row].size() == 5 && trace[row][0] == static_cast<int32_t>(row % 3));
    const std::set<int32_t> ids(trace[row].begin() + 1, trace[row].end());
    CHECK(ids.size() == 4 && *ids.begin() >= 0 && *ids.rbegin() < 64);
  }
}

TEST(the_same_seed_gives_the_same_trace) {
  SyntheticRouting routing = small();
  CHECK(synthetic_trace(routing) == synthetic_trace(routing));
  const Trace first = synthetic_trace(routing);
  routing.seed = 2;
  CHECK(synthetic_trace(routing) != first);
}

TEST(without_skew_and_locality_hits_are_the_share_held) {
  // A quarter of the experts held, of uniform draws: 1/4, within 5 standard deviations of 2400 draws.
  const double rate = simulate(synthetic_trace(small()), "lru", 48, 60).hit_rate();
  CHECK(std::abs(rate - 0.25) < 5 * std::sqrt(0.25 * 0.75 / 2160));
}

TEST(skew_and_locality_each_raise_the_hit_rate) {
  const double uniform = simulate(synthetic_trace(small()), "lru", 48).hit_rate();
  SyntheticRouting routing = small();
  routing.skew = 2;
  CHECK(simulate(synthetic_trace(routing), "lru", 48).hit_rate() > uniform + 0.1);
  routing = small();
  routing.context = 3;
  CHECK(simulate(synthetic_trace(routing), "lru", 48).hit_rate() > uniform + 0.1);
}

TEST(impossible_shapes_are_config_errors) {
  SyntheticRouting routing = small();
  routing.experts_per_token = 65;
  CHECK_THROWS(synthetic_trace(routing), ConfigError, "1 to 64 experts a token, got 3 and 65");
}
