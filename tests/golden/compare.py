"""Prints how far the recorded oracles are from one another, relative to the range of the logits."""

import sys
from itertools import combinations

import numpy as np

from golden.golden_file import FOLDER, load, log_softmax, relative_difference, tells_logits

AGREEMENT = 3e-5  # max |difference| / range that two float32 oracles reach on the same weights


def main() -> int:
    """Compares every pair of goldens of a case; fails on a pair that disagrees."""
    by_case: dict[str, list[str]] = {}
    for path in sorted(FOLDER.glob("*.*.npz")):
        case, oracle, _ = path.name.split(".")
        by_case.setdefault(case, []).append(oracle)
    worst = 0.0
    failures = 0
    for case, oracles in by_case.items():
        for one, other in combinations(oracles, 2):
            a, b = (load(FOLDER / f"{case}.{oracle}.npz") for oracle in (one, other))
            shared, at_a, at_b = np.intersect1d(a.rows, b.rows, return_indices=True)
            one_rows, other_rows = a.logits[at_a], b.logits[at_b]
            if not (tells_logits(a) and tells_logits(b)):
                one_rows, other_rows = log_softmax(one_rows), log_softmax(other_rows)
            difference = relative_difference(one_rows, other_rows)
            same_top = (one_rows.argmax(1) == other_rows.argmax(1)).all()
            same_greedy = (a.greedy == b.greedy).all()
            ok = difference <= AGREEMENT and same_top and same_greedy
            failures += not ok
            worst = max(worst, difference)
            print(
                f"{case:28s} {one} / {other}: {difference:.1e} on {len(shared)} rows, "
                f"top-1 {'same' if same_top else 'DIFFERS'}, "
                f"greedy {'same' if same_greedy else 'DIFFERS'}"
            )
    print(f"worst {worst:.1e}, {failures} disagree")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
