#include "io/fault_plan.h"

#include <cerrno>

#include "test.h"

using flash_moe::io::FailNthRead;
using flash_moe::io::FaultPlan;

TEST(only_the_nth_attempt_fails) {
  FailNthRead plan(3);
  for (int number = 1; number <= 5; ++number) {
    const FaultPlan::Attempt attempt = plan.next_attempt();
    CHECK(attempt.error == (number == 3 ? EIO : 0));
    CHECK(attempt.bytes_to_ask(12345, true) == 12345);
  }
  CHECK(plan.attempts() == 5);
}

TEST(zero_fails_none) {
  FailNthRead plan(0);
  for (int number = 0; number < 100; ++number) CHECK(plan.next_attempt().error == 0);
}

TEST(short_direct_reads_ask_for_whole_pages) {
  const FaultPlan::Attempt attempt{0, 4097};
  CHECK(attempt.bytes_to_ask(100000, true) == 8192);
  CHECK(attempt.bytes_to_ask(100000, false) == 4097);
  CHECK(attempt.bytes_to_ask(4096, true) == 4096);
}
