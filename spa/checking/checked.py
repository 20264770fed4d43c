"""The check: measure every model, hold it against limits and baseline, say what came of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spa.checking import baseline as baselines
from spa.checking import config as configuration
from spa.checking.compare import Change, Finding, at_fault, better, changes, findings
from spa.errors import SpaError, UsageError

if TYPE_CHECKING:
    from spa.checking.baseline import Baseline
    from spa.checking.config import Config, Wanted
    from spa.checking.metrics import Measured

WORKERS = 8  # models at a time, at most: each is in memory as a whole


@dataclass(frozen=True)
class Checked:
    """One model. `key`: its path from the configuration; `error`: why it could not be measured."""

    key: str
    path: Path
    now: Measured | None = None
    before: Measured | None = None
    findings: tuple[Finding, ...] = ()
    changes: tuple[Change, ...] = ()
    better: tuple[Finding, ...] = ()
    error: SpaError | None = None

    @property
    def failed(self) -> list[Finding]:
        return [f for f in self.findings if f.bad]

    @property
    def status(self) -> str:
        return "error" if self.error else "failed" if self.failed else "ok"

    @property
    def at_fault(self) -> list[Change]:
        """The layers behind what failed, worst first."""
        return at_fault(self.findings, self.changes, self.before)


@dataclass(frozen=True)
class Report:
    """All models, in the order of the call or the configuration. `updated`: the baseline was written anew."""

    models: tuple[Checked, ...]
    baseline: Path
    updated: bool = False
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """As in `spa.errors`: 0 everything holds, 1 a limit is passed, above that the gravest error."""
        codes = [m.error.exit_code if m.error else int(bool(m.failed)) for m in self.models]
        return max(codes, default=0)

    @property
    def ok(self) -> bool:
        return self.exit_code == 0

    def __str__(self) -> str:
        from spa.checking.formats import text

        return text(self)


def check(
    models: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] = (),
    *,
    config: str | os.PathLike[str] | None = None,
    baseline: str | os.PathLike[str] | None = None,
    budgets: Mapping[str, Any] | None = None,
    update: bool = False,
    dry: bool = False,
    start: str | os.PathLike[str] | None = None,
    tell: Callable[[str], Any] | None = None,
) -> Report:
    """Check `models`, or those that the configuration names, or else those in the baseline.

    `config`, `baseline`: files; without them the nearest spa.toml or [tool.spa] from `start` (the working directory)
    upwards, and the baseline that it names. `budgets`: limits by metric, more than those configured. `update`: write what
    was measured as the new baseline, and hold against that (`dry`: say what would change instead). `tell` hears of every model measured. Raises `UsageError`
    for a configuration or baseline that cannot be used; what is wrong with one model is in the report."""
    given = [models] if isinstance(models, str | os.PathLike) else list(models)
    how = configuration.load(
        Path(config) if config else None,
        baseline=Path(baseline) if baseline else None,
        budgets=budgets,
        start=Path(start).resolve() if start else None,
    )
    notes: list[str] = []
    old = known(how, update, notes)
    paths = [Path(m) for m in given] or how.found() or [how.root / key for key in (old.models if old else ())]
    if not paths:
        hint = 'spa check MODEL.onnx --update, or [check] models = ["*.onnx"] in spa.toml'
        raise UsageError("nothing to check: no model named, none configured, none in the baseline", hint=hint)
    asked = [(path, how.key(path), how.wanted(path)) for path in paths]
    if old is None and not update:
        relative = [k for _, k, w in asked if any(one.relative for limits in w.budgets.values() for one in limits)]
        if relative:
            raise UsageError(
                f"there is no baseline {how.baseline_file}",
                f"the limits of {relative[0]} need one",
                "the same call with --update, and commit the file",
            )
    results = measured(asked, how, old, update, tell or (lambda line: None))
    updated = False
    if update:
        broken = [r for r in results if r.error]
        if broken:
            notes.append(f"the baseline is as it was: {broken[0].key} could not be measured")
        else:
            whole = not given and bool(how.models.value)
            updated, new = ratchet(how, old, results, whole, notes, dry)
            old = new
    done = tuple(judge(r, w, old) for r, (_, _, w) in zip(results, asked, strict=True))
    if old and not given and (gone := sorted(set(old.models) - {key for _, key, _ in asked})):
        notes.append(f"in the baseline but not checked: {', '.join(gone)}")
    if old and any(f.metric == "gzip_bytes" and f.bad for m in done for f in m.findings):
        was, here = old.versions.get("zlib"), baselines.versions()["zlib"]
        if was and was != here:
            notes.append(f"zlib {was} made the baseline's gzip_bytes, {here} those of now")
    return Report(done, how.baseline_file, updated, tuple(notes))


def known(how: Config, update: bool, notes: list[str]) -> Baseline | None:
    """The baseline; with `update`, one that is corrupt counts as none."""
    try:
        return baselines.load(how.baseline_file)
    except UsageError as error:
        if not update or "has schema" in error.what:
            raise
        notes.append(f"{error.what}; it is written anew")
        return None


def measured(
    asked: Sequence[tuple[Path, str, Wanted]],
    how: Config,
    old: Baseline | None,
    update: bool,
    tell: Callable[[str], Any],
) -> list[Checked]:
    """Files on several threads (reading, hashing and compressing leave Python); then, alone, what must be run."""

    def of_file(row: tuple[Path, str, Wanted]) -> Checked:
        path, key, wanted = row
        from spa.checking.metrics import measure

        before = old.models.get(key) if old else None
        in_baseline = frozenset(before.metrics) if before and not update else frozenset()
        try:
            return Checked(key, path, measure(path, wanted, wanted.asked | in_baseline), before)
        except SpaError as error:
            return Checked(key, path, before=before, error=error)
        except Exception as error:  # ours; the other models are still told
            what = f"internal error: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            hint = f"spa --debug inspect {path}, and report the traceback"
            return Checked(key, path, before=before, error=SpaError(what, key, hint))

    results = []
    with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1, len(asked))) as pool:
        for result in pool.map(of_file, asked):
            results.append(result)
            tell(f"{len(results)}/{len(asked)} {result.key}")
    return [with_runs(result, row[2], how, tell) for row, result in zip(asked, results, strict=True)]


def with_runs(result: Checked, wanted: Wanted, how: Config, tell: Callable[[str], Any]) -> Checked:
    now = result.now
    names = frozenset() if now is None else wanted.asked - set(now.metrics)
    if now is None or not names:
        return result
    from spa.checking.running import run

    tell(f"running {result.key}: {', '.join(sorted(names))}")
    try:
        found = run(result.path, wanted, names, how.root)
    except SpaError as error:
        return replace(result, error=error)
    return replace(result, now=replace(now, metrics={**now.metrics, **found}))


def judge(result: Checked, wanted: Wanted, old: Baseline | None) -> Checked:
    if result.now is None or result.error:
        return result
    before = old.models.get(result.key) if old else None
    found = findings(wanted, result.now, before)
    changed = changes(before.layers, result.now.layers) if before else []
    tighter = better(found, wanted.floors)
    return replace(result, before=before, findings=tuple(found), changes=tuple(changed), better=tuple(tighter))


def ratchet(
    how: Config,
    old: Baseline | None,
    results: Sequence[Checked],
    whole: bool,
    notes: list[str],
    dry: bool = False,
) -> tuple[bool, Baseline]:
    """Write what was measured. `whole`: these are all models there are, so what else the baseline holds goes. `dry`: only
    say what would be written."""
    kept = dict(old.models) if old else {}
    if whole:
        gone = sorted(set(kept) - {r.key for r in results})
        notes += [f"no longer in the baseline: {', '.join(gone)}"] if gone else []
        kept = {}
    new = baselines.Baseline(kept | {r.key: r.now for r in results if r.now}, baselines.versions())
    if dry:
        differ = baselines.differ(old, new)
        notes.append(
            "dry run: the baseline " + (f"would change: {', '.join(differ)}" if differ else "would stay as it is")
        )
        return False, new
    return baselines.save(new, how.baseline_file), new
