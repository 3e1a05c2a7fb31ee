"""Runs one model for test_whole_model.py: python whole_model.py '{"folder": ..., "backend": ..., ...}'.

Feeds a prompt and then greedy tokens one by one; prints the tokens as JSON and writes all logits to `out`.
"""

import json
import sys

import numpy as np

from flash_moe import _core
from flash_moe.errors import Error


def main() -> None:
    case = json.loads(sys.argv[1])
    options = _core.EngineOptions()
    for name, value in case["options"].items():
        setattr(options, name, value)
    engine = _core.Engine.open(case["folder"], options)
    session = engine.new_session()
    errors = []

    def twice(call):
        try:
            return call()
        except Error as error:  # an injected failure: the same call must then succeed
            errors.append(f"{type(error).__name__}: {error}")
            return call()

    rows = [twice(lambda: session.feed(case["prompt"], all=True))]
    tokens = []
    for _ in range(case["steps"]):
        tokens.append(int(rows[-1][-1].argmax()))
        rows.append(twice(lambda: engine.decode([session], [tokens[-1]])))
    np.save(case["out"], np.concatenate(rows))
    print(json.dumps({"tokens": tokens, "errors": errors, "backend": engine.info().backend}))


if __name__ == "__main__":
    main()
