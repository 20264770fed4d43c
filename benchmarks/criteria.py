"""Criteria compared: a trained network pruned to a share of its multiply-accumulates by each, without and with repair.

    python benchmarks/criteria.py FOLDER NAME SHARE [SCOPE [CRITERION...]]

FOLDER as in benchmarks/accuracy.py. 256 calibration samples serve for scores where the criterion reads moments, and for
repair; nothing is trained. `curves` is what `--calib` does without a criterion.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import spa
from spa.calibration import load
from spa.importance.table import CRITERIA, find


def main() -> int:
    folder, name, share = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    scope = sys.argv[4] if len(sys.argv) > 4 else "auto"
    sys.path.insert(0, str(folder))
    import evaluate  # type: ignore[import-not-found]

    names = sys.argv[5:] or [c for c in CRITERIA if find(c).needs != "gradients"] + ["curves"]
    model = spa.load(folder / "models" / f"{name}.onnx")
    data = load(evaluate.calib(name, 256), model)
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp) / "out.onnx"
        for criterion in names:
            cells = []
            start = time.perf_counter()
            for compensate in (False, True):
                choice = {} if criterion == "curves" else {"criterion": criterion, "scope": scope}
                try:
                    result = spa.prune(model, macs=share, calib=data, compensate=compensate, **choice)
                except spa.errors.SpaError as error:
                    cells.append(error.what[:60])
                    continue
                result.model.save(out, force=True)
                cells.append(f"{100 * float(evaluate.top1(name, out)['value']):.1f}")
            print(f"{name} {share} {scope:10} {criterion:9} {cells[0]:>6} {cells[1]:>6}", end="")
            print(f"  ({time.perf_counter() - start:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
