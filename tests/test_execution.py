"""Where tasks run changes no plan; what is interrupted goes on; what goes wrong is said, and nothing is left running."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_text import parse

import spa
from spa import execution, progress
from spa.calibration import load
from spa.errors import MissingTool, SpaError, UsageError
from spa.execution import Inline, ahead
from spa.model import Model
from spa.sensitivity import Calibrated

ROOT = Path(__file__).parent.parent
SPA = [sys.executable, "-c", "import sys; from spa.cli import main; main(sys.argv[1:])"]


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "statistics"


def digits(models: Path) -> tuple[Model, Any]:
    model = spa.load(models / "digits.onnx")
    return model, load(str(models / "digits.npz"), model)


def plan_of(models: Path, **choice: Any) -> str:
    model, feeds = digits(models)
    return spa.plan(model, spa.analyze(model), macs=0.5, calib=feeds, **choice).to_json()


def measured(work: Callable[[], Any]) -> tuple[Any, int]:
    """The result of some work, and how many groups were measured on the way."""
    told: list[int] = []
    with progress.listening(lambda what, done, total: told.append(done) if what == "measuring groups" else None):
        result = work()
    return result, told[-1] - told[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The plan made in this process, of a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPA_CACHE_DIR", str(tmp_path_factory.mktemp("alone")))
        return plan_of(ROOT / "models")


# -- the same plan everywhere


def test_two_processes_make_the_same_plan(models: Path, empty_cache: Path, alone: str) -> None:
    with execution.on(workers=2):
        found, groups = measured(lambda: plan_of(models))
    assert found == alone and groups > 2
    assert not multiprocessing.active_children()


class Answers(Executor):
    """Runs tasks in threads, the first to come last."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(8)
        self.count = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.count += 1
        return self.pool.submit(self.late, 0.3 / self.count, fn, *args)

    @staticmethod
    def late(seconds: float, fn: Any, *args: Any) -> Any:
        time.sleep(seconds)
        return fn(*args)


def test_the_order_in_which_tasks_end_changes_no_plan(models: Path, empty_cache: Path, alone: str) -> None:
    with execution.using(own := Answers(), 8), own.pool:
        assert plan_of(models) == alone
    assert own.count > 2


def test_drawing_ahead_keeps_the_order_and_the_bound() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for i in range(9):
            drawn.append(i)
            yield i

    with execution.using(Inline(), 3):
        for expected, item in enumerate(ahead(items())):
            assert item == expected and len(drawn) == min(9, expected + 3)
    assert len(drawn) == 9


# -- a cluster


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two worker processes behind a scheduler; these start new ones for those that die."""
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=60
        ) as found,
        contextlib.closing(found),
    ):
        yield found


class Killing(Executor):
    """Passes tasks on, and kills the process of the worker that has one of the first."""

    def __init__(self, inner: Executor, scheduler: Any, pids: dict[str, int]) -> None:
        self.inner, self.scheduler, self.pids = inner, scheduler, pids
        self.killed: str | None = None

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = self.inner.submit(slowly, fn, args)
        while self.killed is None and not future.done():
            busy = [a for a, w in list(self.scheduler.workers.items()) if w.processing]
            if busy:
                self.killed = busy[0]
                os.kill(self.pids[busy[0]], signal.SIGKILL)
            time.sleep(0.01)
        return future


def slowly(fn: Any, args: Any, seconds: float = 0.5) -> Any:
    time.sleep(seconds)
    return fn(*args)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the sockets of a killed worker
def test_a_cluster_makes_the_same_plan_though_a_worker_is_killed(
    models: Path, empty_cache: Path, alone: str, cluster: Any
) -> None:
    with execution.on(cluster=cluster.scheduler_address) as inner:
        pids = {w.worker_address: w.pid for w in cluster.workers.values()}
        own = Killing(inner, cluster.scheduler, pids)
        with execution.using(own, 3):
            found, groups = measured(lambda: plan_of(models))
    assert own.killed is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pids[own.killed], 0)
    assert found == alone and groups > 2


def test_no_scheduler_is_said_with_exit_2(models: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="dask.distributed is not installed")
    address = "tcp://127.0.0.1:1"
    done = subprocess.run([*SPA, *prune_args(models, tmp_path / "o.onnx"), "--cluster", address], capture_output=True)
    assert done.returncode == 2 and not done.stdout
    told = done.stderr.decode()
    assert "no scheduler answers" in told and address in told and "dask scheduler" in told and "Trace" not in told


@pytest.mark.parametrize("address", ["", "nowhere", "tcp://", "tcp://host:99999", "tcp://127.0.0.1"])
def test_what_is_no_address_is_said(address: str) -> None:
    pytest.importorskip("distributed", reason="dask.distributed is not installed")
    with pytest.raises(UsageError, match="no scheduler answers"), execution.on(cluster=address):
        pass


def test_without_distributed_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingTool, match=r"spa-onnx\[dask\]") as error, execution.on(cluster="tcp://host:8786"):
        pass
    assert error.value.exit_code == 4


def test_processes_and_a_cluster_are_one_too_many() -> None:
    with pytest.raises(UsageError), execution.on(workers=2, cluster="tcp://host:8786"):
        pass


class Asked:
    """Stands for a client of two workers."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def run(self, function: Callable[[], dict[str, str]], on_error: str) -> dict[str, Any]:
        here = function()
        return {"tcp://a:1": here, "tcp://b:2": self.answer(here)}


@pytest.mark.parametrize("package", ["spa", "numpy", "onnxruntime"])
def test_workers_of_another_version_are_refused(package: str) -> None:
    with pytest.raises(UsageError, match=f"{package} 0.0.1") as error:
        execution.same_versions(Asked(lambda here: here | {package: "0.0.1"}), "tcp://s:0")
    assert "tcp://b:2" in str(error.value)
    execution.same_versions(Asked(lambda here: here), "tcp://s:0")
    with pytest.raises(UsageError, match="no spa"):
        execution.same_versions(Asked(lambda here: ModuleNotFoundError("No module named 'spa'")), "tcp://s:0")


# -- interrupted, and gone on


def prune_args(models: Path, out: Path, *more: str) -> list[str]:
    calib = str(models / "digits.npz")
    return ["prune", str(models / "digits.onnx"), "-o", str(out), "--calib", calib, "--macs", "0.5", *more]


class Stop(Exception):
    pass


def test_what_was_measured_before_an_end_is_not_measured_again(models: Path, empty_cache: Path, alone: str) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "measuring groups" and done == 2:
            raise Stop

    with pytest.raises(Stop), progress.listening(stop):
        plan_of(models)
    total = len(spa.analyze(spa.load(models / "digits.onnx")).groups)
    assert measured(lambda: plan_of(models)) == (alone, total - 2)
    assert measured(lambda: plan_of(models)) == (alone, 0)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_goes_on_where_it_was(
    models: Path, empty_cache: Path, alone: str, tmp_path: Path, kind: signal.Signals
) -> None:
    code = (
        "import os, signal, sys; from spa import progress; from spa.cli import main\n"
        "def told(what, done, total):\n"
        f"    if (what, done) == ('measuring groups', 2): os.kill(os.getpid(), {int(kind)})\n"
        "with progress.listening(told): main(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", code, *prune_args(models, tmp_path / "o.onnx")], capture_output=True)
    assert done.returncode == (130 if kind == signal.SIGINT else -kind)
    assert b"Traceback" not in done.stderr and not (tmp_path / "o.onnx").exists()
    kept = finished(empty_cache)
    assert len(kept) == 2
    total = len(spa.analyze(spa.load(models / "digits.onnx")).groups)
    assert measured(lambda: plan_of(models)) == (alone, total - 2)
    assert kept < finished(empty_cache)


def finished(folder: Path) -> set[str]:
    """Names of whole entries; what a kill cut off begins with a dot."""
    return {p.parent.name for p in folder.glob("[!.]*/facts.json")}


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone", "facts"])
def test_a_damaged_entry_is_measured_again(models: Path, empty_cache: Path, alone: str, damage: str) -> None:
    plan_of(models)
    entry = min(p for p in empty_cache.iterdir())
    data = (entry / "arrays.npz").read_bytes()
    if damage == "gone":
        (entry / "arrays.npz").unlink()
    elif damage == "facts":
        (entry / "facts.json").write_text('{"files": {')
    else:
        flipped = data[:60] + bytes([data[60] ^ 1]) + data[61:]
        (entry / "arrays.npz").write_bytes({"cut": data[:-9], "flip": flipped, "empty": b""}[damage])
    assert measured(lambda: plan_of(models)) == (alone, 1)
    assert measured(lambda: plan_of(models)) == (alone, 0)


def chain(seed: int, share: float = 1.0) -> Model:
    rng = np.random.default_rng(seed)
    text = "agraph (float[N,6] x) => (float[N,3] y) { a = Gemm(x, w0, b0) r = Relu(a) y = Gemm(r, w1, b1) }"
    shapes = {"w0": (6, 9), "b0": (9,), "w1": (9, 3), "b1": (3,)}
    return parse(text, {k: share * rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()})


def test_other_weights_inputs_seeds_and_options_are_other_entries(empty_cache: Path) -> None:
    x = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
    twin = x.copy()
    twin[-1, -1] += 1e-3

    def curves(model: Model, source: Any, seed: int = 0, align: int = 1) -> Callable[[], Any]:
        return lambda: Calibrated(spa.analyze(model), load(source, model, seed=seed), align=align).curves

    for anew in (
        curves(chain(0), {"x": x}),
        curves(chain(1), {"x": x}),
        curves(chain(0, 1.0001), {"x": x}),
        curves(chain(0), {"x": twin}),
        curves(chain(0), "synthetic", seed=0),
        curves(chain(0), "synthetic", seed=1),
        curves(chain(0), {"x": x}, align=2),
    ):
        first, groups = measured(anew)
        assert groups == 1
        assert measured(anew) == (first, 0)


# -- what goes wrong


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_said() -> None:
    with pytest.raises(SpaError, match="a worker process died") as error, execution.on(workers=2) as pool:
        pool.submit(die).result()
    assert "fewer workers" in error.value.hint and len(str(error.value).splitlines()) == 3
    assert not multiprocessing.active_children()
    assert execution.executor() is not pool


def test_an_error_ends_tasks_nobody_waits_for_any_more() -> None:
    start = time.monotonic()
    with pytest.raises(Stop), execution.on(workers=2) as pool:
        pool.submit(os.getpid).result()
        for _ in range(8):
            pool.submit(slowly, len, (bytes(10**7),), 60)  # more than fits into a pipe
        raise Stop
    assert time.monotonic() - start < 60
    assert not multiprocessing.active_children()


def test_an_error_within_a_task_is_passed_on() -> None:
    for workers in (0, 2):
        with pytest.raises(ZeroDivisionError), execution.on(workers) as pool:
            pool.submit(divmod, 1, 0).result()


WORKING = """
import os, sys, time
from spa import execution

def work():
    with execution.on(workers=2) as pool:
        pids = {f.result() for f in [pool.submit(pid) for _ in range(20)]}
        print(*pids, flush=True)
        waiting = [pool.submit(time.sleep, 60) for _ in range(5)]
        waiting[0].result()

def pid():
    time.sleep(0.05)
    return os.getpid()

if __name__ == "__main__":
    try:
        work()
    except KeyboardInterrupt:
        sys.exit(130)
"""


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")


@linux
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(tmp_path: Path, kind: signal.Signals) -> None:
    script = tmp_path / "working.py"
    script.write_text(WORKING)
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    pids = {int(p) for p in process.stdout.readline().split()}
    living = group(process.pid)
    if kind == signal.SIGINT:
        os.killpg(process.pid, kind)  # as a terminal does: the workers hear it too
    else:
        process.send_signal(kind)
    _, told = process.communicate(timeout=30)  # the workers hold its pipes, so they are gone too
    assert process.returncode == (130 if kind == signal.SIGINT else -kind)
    assert pids and pids <= living, told
    assert not group(process.pid) & pids
    if kind == signal.SIGINT:
        assert "Traceback" not in told


@linux
def test_ctrl_c_with_workers_ends_with_130_and_no_orphans(models: Path, tmp_path: Path) -> None:
    environment = os.environ | {"SPA_CACHE_DIR": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [*SPA, *prune_args(models, tmp_path / "o.onnx", "--workers", "2")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and len(group(process.pid)) < 3:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert out == "" and "Traceback" not in told
    assert not (tmp_path / "o.onnx").exists()
    for _ in range(100):  # multiprocessing's own tracker of semaphores goes last
        if not group(process.pid):
            break
        time.sleep(0.05)
    assert not group(process.pid)


def group(leader: int) -> set[int]:
    """The living processes of a session."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.add(int(stat.parent.name))
    return found


# -- progress


def test_progress_is_told_to_the_listener_within_and_to_nobody_else() -> None:
    outer: list[Any] = []
    inner: list[Any] = []
    with progress.listening(lambda *told: outer.append(told)):
        progress.tell("a", 0, 2)
        with progress.listening(lambda *told: inner.append(told)):
            progress.tell("b", 1, 2)
        thread = threading.Thread(target=progress.tell, args=("c", 1, 1))
        thread.start()
        thread.join()
        progress.tell("a", 2, 2)
    progress.tell("d", 1, 1)
    assert outer == [("a", 0, 2), ("a", 2, 2)] and inner == [("b", 1, 2)]
