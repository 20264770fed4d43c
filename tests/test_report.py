"""`spa report`: its numbers against the networks they speak of, its page against hostile names."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import spa
from spa.cli import cli
from spa.cost import inspect
from spa.errors import UsageError
from spa.report import charts
from spa.report.gather import Report, gather, twin
from spa.report.layers import merged
from spa.report.page import LONGEST, html, name, visible
from spa.report.run import find
from spa.report.treemap import squarify, tiles

HOSTILE = (
    "<script>window.pwned=1</script>",
    "</style><img src=x onerror=window.pwned=2>",
    '" onmouseover="window.pwned=3" x=\'',
    "--><svg onload=window.pwned=4>{{ 7*7 }}",
    "größe/\u202egnp.exe\u0007/模型 & </title></script>",
    "a" * 400 + "/end",
)

TABLE = {"div", "style", "p", "strong", "bdi", "wbr", "table", "thead", "tbody", "tr", "th", "td"}


def network(file: Path, names: tuple[str, ...] = ("conv1", "conv2", "relu", "pool", "flat", "head")) -> Path:
    """Two convolutions and a classifier; `names` of its nodes and, with `.w`, of its weights."""
    draw = np.random.default_rng(0)
    a, b, relu, pool, flat, head = names
    weights = {
        f"{a}.w": draw.normal(size=(12, 3, 3, 3)),
        f"{b}.w": draw.normal(size=(8, 12, 3, 3)),
        f"{head}.w": draw.normal(size=(5, 8)),
        f"{head}.b": draw.normal(size=5),
    }
    nodes = [
        helper.make_node("Conv", ["x", f"{a}.w"], ["1"], name=a, pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["1"], ["2"], name=relu),
        helper.make_node("Conv", ["2", f"{b}.w"], ["3"], name=b, pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["3"], ["4"], name=pool),
        helper.make_node("Flatten", ["4"], ["5"], name=flat),
        helper.make_node("Gemm", ["5", f"{head}.w", f"{head}.b"], ["y"], name=head, transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, file)
    return file


def spa_(*args: object) -> str:
    done = CliRunner().invoke(cli, [str(a) for a in args], catch_exceptions=False, standalone_mode=False)
    assert done.exception is None
    return done.stdout


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    """A dense network, its bundle in `run` and the JSON in `run.json`."""
    dense = network(tmp_path / "dense.onnx")
    told = spa_("prune", dense, "-o", tmp_path / "run", "--ratio", "0.5", "--json")
    (tmp_path / "run.json").write_text(told)
    return tmp_path


class Elements(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and the text outside of script and style."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.inside = ""
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.inside = tag if tag in self.raw else ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.raw[self.inside].append(data)
        else:
            self.text += data


# The data -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bundle", "json", "model"])
def test_numbers_are_those_of_the_networks(kind: str, pruned: Path) -> None:
    place = {"bundle": "run", "json": "run.json", "model": "run/model.onnx"}[kind]
    data = gather(find(pruned / place, dense=pruned / "dense.onnx")).data
    files = {"before": onnx.load(pruned / "dense.onnx"), "after": onnx.load(pruned / "run" / "model.onnx")}
    for side, model in files.items():
        weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        reads = {n.name: [weights[i] for i in n.input if i in weights] for n in model.graph.node}
        totals = {t["key"]: t[side] for t in data["totals"]}
        assert totals["params"] == sum(w.size for w in weights.values())
        assert totals["bytes"] == sum(w.nbytes for w in weights.values())
        rows = {row["name"]: row[side] for row in data["layers"] if row[side]}
        assert {n: r["params"] for n, r in rows.items()} == {n: sum(w.size for w in r) for n, r in reads.items() if r}
        assert sum(row["macs"] for row in rows.values()) == totals["macs"]
    if kind != "model":
        removed = {g["id"]: g["removed"] for g in data["groups"]}
        assert removed == {"conv1.w:0": 6, "conv2.w:0": 4}
        assert data["verified"]["ok"]
    blocked = {b["group"]: b for b in data["blocked"]}
    assert set(blocked) == {"conv1.w:1", "head.w:0"}  # the network's input and output
    assert "output 'y'" in blocked["head.w:0"]["reason"] and blocked["head.w:0"]["remedy"]


def test_a_bundle_alone_knows_the_totals_before(pruned: Path) -> None:
    data = gather(find(pruned / "run")).data
    before = inspect(spa.load(pruned / "dense.onnx"))
    assert {t["key"]: t["before"] for t in data["totals"]} == {
        "params": before.params,
        "macs": before.macs,
        "bytes": before.bytes,
        "peak_activation_bytes": None,
        "nonzero": None,
    }
    assert all(row["before"] is None for row in data["layers"])


def test_density_counts_zeros(tmp_path: Path) -> None:
    model = onnx.load(network(tmp_path / "a.onnx"))
    weight = numpy_helper.to_array(model.graph.initializer[1]).copy()
    weight.reshape(-1)[::4] = 0
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(weight, "conv2.w"))
    onnx.save(model, tmp_path / "a.onnx")
    report = gather(find(tmp_path / "a.onnx"))
    density = {row["name"]: row["density"] for row in report.data["layers"]}
    assert density == {"conv1": 1.0, "conv2": 0.75, "head": 1.0}
    assert "75.0%" in Elements(html(report)).text


def test_the_json_is_found_beside_its_networks_after_a_move(
    pruned: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    new = tmp_path_factory.mktemp("moved") / "all"
    pruned.rename(new)
    found = find(new / "run.json")
    assert (found.model, found.dense) == (new / "run" / "model.onnx", new / "dense.onnx")


def everything(folder: Path) -> None:
    """Put into a bundle's report what only larger runs have."""
    file = folder / "report.json"
    told = json.loads(file.read_text())
    scores = {"classes": 5, "rows": 40, "top1": 0.9, "top5": None, "kl": 0.01, "probabilities": False, "accuracy": None}
    scores["forgotten"] = [{"label": 3, "count": 10, "changed": 4, "rate": 0.4, "low": 0.17, "high": 0.69}]
    scores["exemplars"] = [
        {"input": 17, "position": 0, "was": 3, "now": 1, "margin_before": 0.25, "margin_after": -0.125}
    ]
    trials = [
        {"macs": 0.8, "value": 0.93, "fits": True},
        {"macs": 0.4, "value": 0.925, "fits": True},
        {"macs": None, "value": None, "fits": False},
        {"macs": 0.3, "value": 0.7, "fits": False},
    ]
    told["drift"] = {
        "value": 0.04,
        "inputs": 40,
        "held_back": True,
        "top1": 0.9,
        "outputs": [{"name": "y", "error": 0.04, "reshaped": 0, "scores": scores}],
        "metric": {"name": "accuracy", "before": 0.95, "after": 0.925, "keep": 0.03, "trials": trials},
    }
    told["curves"] = [
        {"group": "conv1.w:0", "counts": [0, 3, 9], "errors": [0.0, 1e-4, 1e-2]},
        {"group": "conv2.w:0", "counts": [0, 4, 7], "errors": [0.0, 0.03, float("nan")]},
    ]
    told["command"] = ["spa", "prune", "dense.onnx", "--ratio", "0.5"]
    file.write_text(json.dumps(told))
    kernels = [
        {"layer": n, "kernel": "k", "family": "conv", "format": "csr", "tile": "8x1", "why": "why not"}
        for n in ("conv1", "conv2")
    ]
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["targets"]["host"] = {"path": "host", "triple": "x", "cpu": "y", "library": "z", "kernels": kernels}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_what_a_run_measured_is_told(pruned: Path) -> None:
    everything(pruned / "run")
    timing = {"target": "host", "median_ms": 0.5, "p10_ms": 0.4, "p90_ms": 0.6, "runs": 9, "threads": 1, "machine": "m"}
    timing |= {"ratio": 2.0, "against": {"name": "onnxruntime", "median_ms": 1.0}}
    timing["layers"] = [{"name": "conv2", "ms": 0.25, "share_of_peak": 0.375}]
    (pruned / "bench.json").write_text(json.dumps(timing))
    report = gather(find(pruned / "run", bench=[pruned / "bench.json"]))
    data = json.loads(twin(report))
    assert [p["macs"] for p in data["pareto"]] == [0.3, 0.4, 0.8]
    assert [(c["size"], c["removed"]) for c in data["curves"]] == [(12, 6), (8, 4)]
    assert [k["share_of_peak"] for k in data["kernels"]] == [None, 0.375]
    page = Elements(html(report))
    for words in ("top-1 agreement 90.0%", "40.0%", "17.0% – 69.0%", "why not", "37.5%", "2.00×", "-0.125"):
        assert words in page.text, words
    assert "spa prune dense.onnx --ratio 0.5" in page.text
    assert Counter(tag for tag, _ in page.found)["polyline"] == 3
    assert sum("chosen" in (a.get("class") or "") for _, a in page.found) == 3


# The page -----------------------------------------------------------------------------------------------------------


def of_run(folder: Path, *names: tuple[str, ...]) -> Report:
    folder.mkdir()
    told = spa_("prune", network(folder / "dense.onnx", *names), "-o", folder / "run", "--ratio", "0.5", "--json")
    (folder / "run.json").write_text(told)
    return gather(find(folder / "run.json"))


def skeleton(page: Elements) -> Counter[tuple[str, ...]]:
    """Elements and their attributes, but for those that depend on a name's length."""
    return Counter((t, *sorted({*a} - {"title"})) for t, a in page.found if t not in ("wbr", "text"))


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    dense = tmp_path / "hostile" / "dense.onnx"
    report = of_run(tmp_path / "hostile", HOSTILE)
    page, plain = Elements(html(report)), Elements(html(of_run(tmp_path / "plain")))
    assert {row["name"] for row in json.loads(twin(report))["layers"]} == {HOSTILE[0], HOSTILE[1], HOSTILE[5]}
    assert HOSTILE[0] in page.text and HOSTILE[1] in page.text
    assert skeleton(page) == skeleton(plain)
    assert not [a for _, attrs in page.found for a in attrs if a.startswith("on")]
    assert Counter(tag for tag, _ in page.found)["script"] == Counter(tag for tag, _ in page.found)["style"] == 1
    digest = base64.b64encode(hashlib.sha256("".join(page.raw["script"]).encode()).digest()).decode()
    policies = [a["content"] or "" for t, a in page.found if t == "meta" and a.get("http-equiv")]
    assert [f"script-src 'sha256-{digest}'" in p and "default-src 'none'" in p for p in policies] == [True]
    for thing in (spa.load(dense), spa.prune(spa.load(dense), ratio=0.5)):
        shown = [spa.analyze(thing), inspect(thing)] if isinstance(thing, spa.Model) else [thing, thing.plan]
        for found in (Elements(x._repr_html_()) for x in shown):
            assert {t for t, _ in found.found} <= TABLE
            assert not [a for _, attrs in found.found for a in attrs if a.startswith("on")]


@given(st.text(alphabet=st.characters(codec=None), max_size=300))
@settings(max_examples=60)
def test_any_name_is_shown_and_harmless(text: str) -> None:
    page = Elements(f"<p>{name(text)}</p>")
    assert [tag for tag, _ in page.found if tag != "wbr"] == ["p", "bdi"]
    if len(text) <= LONGEST:
        assert page.text == visible(text)
    else:
        assert page.found[1][1]["title"] == visible(text)
    assert not re.search("[\x00-\x1f\x7f\u202a-\u202e\ud800-\udfff]", page.text)


def test_the_page_loads_nothing_and_has_its_parts(pruned: Path) -> None:
    everything(pruned / "run")
    page = Elements(html(gather(find(pruned / "run", dense=pruned / "dense.onnx"))))
    links = [v for _, a in page.found for k, v in a.items() if k in ("src", "href", "srcset", "data", "action")]
    assert all(v is not None and (v.startswith("#") or v == "data:,") for v in links)
    ids = Counter(a["id"] for _, a in page.found if "id" in a)
    assert max(ids.values()) == 1
    assert {v[1:] for v in links if v and v.startswith("#")} <= set(ids)
    assert {"where", "layers", "drift", "curves", "groups", "blocked", "targets", "made"} <= set(ids)
    assert all(a.get("aria-label") or a.get("aria-labelledby") for t, a in page.found if t == "svg" and a.get("role"))


def test_the_same_run_gives_the_same_bytes(pruned: Path) -> None:
    first, second = (gather(find(pruned / "run")) for _ in range(2))
    assert html(first) == html(second) and twin(first) == twin(second)


def test_command_writes_the_page_and_its_twin(pruned: Path) -> None:
    out = pruned / "pages" / "all.html"
    told = spa_("report", pruned / "run", "-o", out, "--json")
    assert json.loads(told) == json.loads((pruned / "pages" / "all.json").read_text())
    assert out.read_text().startswith("<!doctype html>")
    spa_("report", pruned / "dense.onnx")
    assert (pruned / "dense.report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "does not exist"),
        (["."], "not a bundle"),
        (["run", "-o", "page.pdf"], "HTML"),
        (["run", "-o", "there.html"], "exists"),
        (["run", "--dense", "nothing.onnx"], "no file"),
        (["run", "--bench", "run.json"], "median_ms"),
        (["run", "-o", "run/report.html", "--json"], "belongs to the bundle"),
        (["lost.json"], "is not there"),
        (["dry.json"], "dry run"),
        (["broken.json"], "cannot read"),
    ],
)
def test_mistakes_are_told(arguments: list[str], words: str, pruned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pruned)
    Path("there.html").write_text("mine")
    Path("lost.json").write_text('{"before": {}, "output": "gone.onnx"}')
    Path("dry.json").write_text('{"before": {}, "output": null}')
    Path("broken.json").write_text("{")
    before = sorted(Path().rglob("*"))
    with pytest.raises(UsageError, match=words):
        spa_("report", *arguments)
    assert sorted(Path().rglob("*")) == before and Path("there.html").read_text() == "mine"


# Its parts ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=60), st.floats(10, 1000), st.floats(10, 1000))
@settings(max_examples=60)
def test_treemaps_fill_the_plane_without_overlap(sizes: list[float], width: float, height: float) -> None:
    found = np.array(squarify(sorted(sizes, reverse=True), width, height))
    expected = np.array(sorted(sizes, reverse=True)) * width * height / sum(sizes)
    assert np.allclose(found[:, 2] * found[:, 3], expected, rtol=1e-6, atol=1e-6 * width * height)
    slack = 1e-6 * max(width, height)
    assert (found >= -slack).all()
    assert (found[:, 0] + found[:, 2] <= width + slack).all() and (found[:, 1] + found[:, 3] <= height + slack).all()
    x0, y0, x1, y1 = found[:, 0], found[:, 1], found[:, 0] + found[:, 2], found[:, 1] + found[:, 3]
    across = np.minimum.outer(x1, x1) - np.maximum.outer(x0, x0)
    down = np.minimum.outer(y1, y1) - np.maximum.outer(y0, y0)
    np.fill_diagonal(across, 0)
    assert not ((across > slack) & (down > slack)).any()


def test_small_layers_share_a_tile() -> None:
    def row(name: str, was: int, now: int) -> dict[str, Any]:
        return {"name": name, "op": "Conv", "before": {"bytes": was}, "after": {"bytes": now}}

    rows = [row("large", 9000, 4500), row("a", 5, 1), row("b", 3, 3), row("none", 0, 0)]
    large, rest = tiles(rows, "bytes", {"Conv": 1}, 900, 100)
    assert (large.name, large.kept, rest.name, rest.before, rest.after) == ("large", 0.5, "2 others", 8, 4)


@given(st.lists(st.sampled_from("abcdefgh"), unique=True), st.lists(st.sampled_from("abcdefgh"), unique=True))
def test_merged_lists_hold_everything_in_the_new_order(old: list[str], new: list[str]) -> None:
    found = merged(old, new)
    assert sorted(found) == sorted({*old, *new})
    assert [n for n in found if n in new] == new


@pytest.mark.parametrize(("at", "expected"), [(2, 1e-4), (4, 1e-3), (6, 1e-2), (9, 1e-2), (1, 1e-4)])
def test_errors_between_levels_lie_on_the_logarithm(at: float, expected: float) -> None:
    assert math.isclose(charts.interpolate([0, 2, 6], [0, 1e-4, 1e-2], at), expected)


@pytest.mark.parametrize("chart", [charts.curve, lambda d: charts.front(d["points"])])
def test_charts_stay_in_their_frame(chart: Callable[[dict[str, Any]], charts.Chart]) -> None:
    points = [{"macs": m, "value": v, "fits": True} for m, v in ((0.2, -4.0), (0.5, -4.0), (1.0, -4.0))]
    drawn = chart({"counts": [0, 1, 8], "errors": [0.0, 1e-9, 30.0], "size": 8, "removed": 8, "points": points})
    assert drawn.points
    for x, y, *_ in [*drawn.points, drawn.chosen or (0, 0)]:
        assert 0 <= x <= drawn.width and -1e-9 <= y <= drawn.height + 1e-9
