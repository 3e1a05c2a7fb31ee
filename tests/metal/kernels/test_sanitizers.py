"""Every kernel under ThreadSanitizer (races between threads and between threadgroups) and AddressSanitizer.

The program is compiled from all of metal/*.metal as one source, as newLibraryWithSource gets them: names must not clash.
"""

from collections import defaultdict
from pathlib import Path

import pytest
from rig import compile as rig_compile
from rig import sanitized
from rig.cache import KERNEL_FOLDER, build_once

from .test_kernels import CASES

CASES_PER_KERNEL = 3  # of the small ones: a race or a bad index does not need many


def chosen_cases():
    by_kernel = defaultdict(list)
    for case in CASES:
        if not case.large:
            by_kernel[case.kernel].append(case)
    # The first and the last ones: single rows, and tails.
    return [
        case
        for cases in by_kernel.values()
        for case in (cases[:1] + cases[1:][-(CASES_PER_KERNEL - 1) :])
    ]


@pytest.fixture(scope="module")
def case_files(images, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("cases")
    files = []
    for number, case in enumerate(chosen_cases()):
        files.append(folder / f"{number:03}-{case.kernel}")
        case.dispatch(images[case.image]).write(files[-1])
    return files


@pytest.mark.parametrize("sanitizer", ["thread", "address"])
def test_kernels_are_clean(rig_cache, runtime, case_files, sanitizer):
    sources = sorted(KERNEL_FOLDER.glob("*.metal"))
    inputs = [*sources, *KERNEL_FOLDER.glob("*.h"), *rig_compile.translator_sources()]
    mark = rig_compile.fingerprint([*inputs, *rig_compile.runtime_sources()])
    all_kernels = rig_cache / f"all_{mark}.metal"
    all_kernels.write_text("".join(f'#include "{path.name}"\n' for path in sources))
    program = build_once(
        rig_cache / f"kernels_{sanitizer}_{mark}",
        lambda to: sanitized.build(sanitizer, all_kernels, [KERNEL_FOLDER], runtime, to),
    )
    finding = sanitized.replay(program, case_files)
    assert finding.code == 0, f"{sanitizer} sanitizer: {finding.text[-4000:]}"
    names = {path.name.split("-")[1] for path in case_files}
    assert names == {case.kernel for case in CASES}, "every kernel is among them"
