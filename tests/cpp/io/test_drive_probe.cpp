#include "io/drive_probe.h"

#include "io/temp_file.h"
#include "test.h"

using flash_moe::ConfigError;
using flash_moe::IoError;
using flash_moe::io::DriveProbeOptions;
using flash_moe::io::FailNthRead;
using flash_moe::io::File;
using flash_moe::io::probe_drive;

namespace {

DriveProbeOptions small() {
  DriveProbeOptions options;
  options.engine = "threads";
  options.record_bytes = 10000;  // rounded up to 12288
  options.bytes_max = 60000;
  return options;
}

}  // namespace

TEST(each_depth_reads_its_bytes_and_takes_time) {
  const test::TempFile temp(20 * 12288);
  const File file(temp.path());
  for (const bool direct : {true, false}) {
    DriveProbeOptions options = small();
    options.direct = direct;
    const int depths[] = {1, 2, 4, 8, 3};
    const auto speeds = probe_drive(file, depths, options);
    CHECK(speeds.size() == 5);
    for (size_t i = 0; i < speeds.size(); ++i) {
      CHECK(speeds[i].depth == depths[i]);
      CHECK(speeds[i].bytes == 4 * 12288);
      CHECK(speeds[i].seconds > 0 && speeds[i].bytes_per_second() > 0);
    }
  }
}

TEST(time_bounds_the_probe_but_for_its_first_record) {
  const test::TempFile temp(20 * 12288);
  const File file(temp.path());
  DriveProbeOptions options = small();
  options.seconds_max = 0;
  const int depths[] = {2};
  const auto speed = probe_drive(file, depths, options)[0];
  CHECK(speed.bytes == 12288 && speed.bytes_per_second() > 0);
}

TEST(a_failing_drive_is_an_io_error) {
  const test::TempFile temp(20 * 12288);
  const File file(temp.path(), nullptr, std::make_shared<FailNthRead>(3));
  const int depths[] = {2};
  CHECK_THROWS(probe_drive(file, depths, small()), IoError, temp.path().c_str());
}

TEST(a_file_too_short_and_a_depth_of_none_are_config_errors) {
  const test::TempFile temp(5000);
  const File file(temp.path());
  const int depths[] = {1};
  CHECK_THROWS(probe_drive(file, depths, small()), ConfigError, "has 5000");
  const test::TempFile longer(20000);
  const int none[] = {0};
  CHECK_THROWS(probe_drive(File(longer.path()), none, small()), ConfigError, "got 0");
}
