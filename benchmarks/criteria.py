"""Criteria compared: a trained network pruned to a share of its multiply-accumulates by each; left alone, mended from its
weights alone (`spa.passes.merge`), and mended on calibration samples.

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
import spa.errors
from spa.calibration import load
from spa.importance.table import CRITERIA, find
from spa.model import Model
from spa.passes.merge import merge
from spa.planning import Plan, gone_from, removed_slices, transfer
from spa.workbench import workbench


def merged(model: Model, plan: Plan) -> Model:
    source, target = spa.analyze(model), spa.analyze(workbench(model))
    gone = transfer(source, gone_from(source, plan.removed), target)
    return spa.apply(merge(target, gone)[0], Plan({}, removed_slices(target, gone), plan.groups)).model


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
            choice = {} if criterion == "curves" else {"criterion": criterion, "scope": scope}
            try:
                alone = spa.prune(model, macs=share, calib=data, compensate=False, **choice)
            except spa.errors.SpaError as error:
                print(f"{name} {share} {scope:10} {criterion:9} {error.what}")
                continue
            mended = spa.prune(model, macs=share, calib=data, **choice)
            assert isinstance(alone.plan, Plan)
            for network in (alone.model, merged(model, alone.plan), mended.model):
                network.save(out, force=True)
                cells.append(f"{100 * float(evaluate.top1(name, out)['value']):.1f}")
            print(
                f"{name} {share} {scope:10} {criterion:9} {' '.join(f'{c:>6}' for c in cells)}  ({time.perf_counter() - start:.0f} s)",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
