"""What must be run or compiled to be known: drift, accuracy, speed, and the bytes of compiled artifacts.

One after the other, alone on the machine: times are measured here.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spa.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from spa.checking.config import Wanted
    from spa.inputs import Feeds
    from spa.model import Model
    from spa.runtime.bench import Step


def run(path: Path, wanted: Wanted, asked: frozenset[str], root: Path) -> dict[str, float]:
    """The numbers in `asked` that `spa.checking.metrics` does not give. `root`: where the user's own functions are imported
    from. Raises what measuring raises."""
    from spa.model import load

    model = load(path)
    found: dict[str, float] = {}
    if "drift" in asked:
        found["drift"] = drift(model, wanted)
    if "accuracy" in asked:
        from spa.metric import as_metric

        assert wanted.metric is not None
        with importable(root):
            found["accuracy"] = as_metric(wanted.metric)(model)
    if asked & {"speedup", "latency_ms"}:
        found |= {k: v for k, v in speed(path, model, wanted, "speedup" in asked).items() if k in asked}
    for target in dict.fromkeys(a.partition(".")[2] for a in sorted(asked) if "." in a):
        found |= {k: v for k, v in artifact(path, wanted, target).items() if k in asked}
    return found


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def drift(model: Model, wanted: Wanted) -> float:
    """Of the outputs against those of the reference, as `spa.judging` defines it, on the inputs named or drawn ones."""
    from spa.calibration import load as load_inputs
    from spa.judging import judge
    from spa.model import load
    from spa.quantities import sizes_of

    assert wanted.reference is not None
    dense = load(wanted.reference)
    feeds = load_inputs(wanted.inputs or "synthetic", dense, sizes=sizes_of(dense, wanted.shapes))
    return judge(dense, model, feeds).error


def speed(path: Path, model: Model, wanted: Wanted, against: bool) -> dict[str, float]:
    """Median milliseconds of one run in onnxruntime (one thread, all optimisations), and how many times faster than the
    reference: the median over neighbouring runs of the two, in turn."""
    import numpy as np

    from spa.model import load
    from spa.runtime.bench import measure

    ours = step(path, model, wanted)
    theirs = step(wanted.reference, load(wanted.reference), wanted) if against and wanted.reference else None
    timing = measure(ours, theirs, seconds=1.0)
    found = {"latency_ms": float(np.median(timing.ours))}
    return found if timing.ratio is None else found | {"speedup": timing.ratio}


def step(path: Path, model: Model, wanted: Wanted) -> Step:
    """One run on drawn inputs, in seconds."""
    import onnxruntime as ort

    from spa.quantities import sizes_of
    from spa.verification import Session, feeds_for

    feeds: Feeds = feeds_for(Session(model), model, 1, 0, None, sizes_of(model, wanted.shapes))[0]
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def once() -> float:
        begin = time.perf_counter()
        session.run(None, feeds)
        return time.perf_counter() - begin

    return once


def artifact(path: Path, wanted: Wanted, target: str) -> dict[str, float]:
    """Bytes of the library for a target and of the code in it: from the bundle named, or compiled now (with `shapes`)."""
    bundle = wanted.bundle
    if bundle is None:
        from spa.codegen.bundle import compile

        made = compile(path, target, shapes=wanted.shapes)
        return sizes(made.path, made.manifest, target)
    from spa.runtime.load import read_manifest

    manifest = read_manifest(bundle)
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != manifest.get("source_sha256"):
            raise CheckFailed(
                "the bundle was compiled from another network", str(bundle), f"spa compile {path} -o {bundle} --force"
            )
    return sizes(bundle, manifest, target)


def sizes(bundle: Path, manifest: Any, target: str) -> dict[str, float]:
    facts = manifest["targets"].get(target)
    if facts is None:
        raise UsageError(
            f"the bundle has no target '{target}'", str(bundle), "it has " + ", ".join(manifest["targets"])
        )
    library = bundle / facts["path"] / facts["library"]
    if not library.is_file():
        raise UsageError(f"the bundle is incomplete: {library} is missing", hint="compile it again")
    return {f"artifact_bytes.{target}": library.stat().st_size, f"code_bytes.{target}": facts["code_bytes"]}
