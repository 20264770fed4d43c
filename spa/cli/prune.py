"""spa prune: remove what matters least, prove it, and compile it for the targets named."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spa.cli.complete import criteria, networks, recipes, target_names
from spa.cli.decide import calibration, decide, doubts
from spa.cli.options import (
    cuda_options,
    human,
    json_option,
    parse_shapes,
    print_json,
    refuse_existing,
    shape_option,
    sizes_of,
)
from spa.cli.recipe import ENVIRONMENT, read_settings, records, settled, tell_differences, versions
from spa.importance.table import CRITERIA

if TYPE_CHECKING:
    from spa.model import Model
    from spa.pipeline import Result
    from spa.planning import Plan


@click.command(context_settings={"auto_envvar_prefix": ENVIRONMENT})
@click.argument("model", type=click.Path(path_type=Path), shell_complete=networks)
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), help="A .onnx file, or a folder for a bundle.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="host, arm, wasm or cuda; may be repeated. Makes OUT a bundle.",
    shell_complete=target_names,
)
@cuda_options
@click.option("--ratio", type=float, help="Remove this share of the channels of every prunable group.")
@click.option("--macs", type=float, help="Keep at most this share of the multiply-accumulates.")
@click.option("--params", type=float, help="Keep at most this share of the parameters.")
@click.option("--size", help="Keep the written model under this size, such as 2MB.")
@click.option("--latency", type=float, help="Keep at most this share of the cost that --cost-table gives.")
@click.option("--cost-table", type=click.Path(path_type=Path), help="What layers cost on a target: .toml or .json.")
@click.option(
    "--max-drift", type=float, help="Remove as much as keeps the outputs' drift under this (the default, 0.05)."
)
@click.option("--eval", "evaluate", metavar="MODULE:FUNCTION", help="Your metric of an .onnx file, higher is better.")
@click.option(
    "--keep-accuracy",
    type=float,
    help="Remove as much as lets the metric of --eval fall by at most this, such as 0.01.",
)
@click.option(
    "--criterion",
    metavar="NAME",
    help=f"What makes a channel matter: {', '.join(CRITERIA)} [default: obs with --calib, l2 without].",
    shell_complete=criteria,
)
@click.option(
    "--aggregate",
    type=click.Choice(["sum", "mean", "max", "product", "median"]),
    help="Over the tensors of a group [default: the criterion's own].",
)
@click.option(
    "--normalise",
    type=click.Choice(["mean", "max", "sum", "none", "gaussian", "lamp"]),
    help="Of a group's scores, to compare them with others' [default: the criterion's own].",
)
@click.option(
    "--scope",
    type=click.Choice(["local", "global", "isomorphic", "lamp", "auto"]),
    default="auto",
    show_default=True,
    help="Same share of every group, of all together, or of groups of the same structure.",
)
@click.option(
    "--calib",
    help="Calibration inputs to choose by and to repair with: FILE.npz or .npy, samples along the first axis; a folder of those, "
    "or of images as in DIR{mean=0.5,std=0.5}; module:function; or without data: synthetic, or weights to repair by these alone.",
)
@click.option(
    "--gradients",
    type=click.Path(path_type=Path),
    help="For the criteria taylor, snip and grasp: an .npz of gradients by weight's name.",
)
@click.option(
    "--refine", type=click.IntRange(0), default=0, help="With --calib: try this many other divisions of the budget."
)
@click.option("--workers", type=click.IntRange(1), help="With --calib: measure in this many processes.")
@click.option("--cluster", metavar="TCP://HOST:PORT", help="With --calib: measure on a dask.distributed scheduler.")
@click.option("--no-compensate/--compensate", help="With --calib: do not repair the readers of what is removed.")
@click.option(
    "--align",
    type=click.IntRange(1),
    help="Keep a multiple of this many channels (default 1, with a target its vector width).",
)
@click.option("--keep", multiple=True, metavar="PATTERN", help="Nodes, weights or groups never touched (glob).")
@click.option(
    "--sparsity",
    metavar="PATTERN",
    help="Thin out what is kept: 2:4, block4x1:0.5, unstructured:0.8, ...; auto: narrow or thin, layer by layer.",
)
@click.option("--dense", multiple=True, metavar="PATTERN", help="With --sparsity: layers left dense (glob).")
@click.option(
    "--layers",
    multiple=True,
    metavar="GLOB=PATTERN",
    help="Thin out these layers (weights or nodes) in a pattern of their own; the last that matches counts.",
)
@click.option(
    "--sparse-initializer/--dense-initializer",
    "sparse_initializer",
    help="Write weights with few nonzeros as ONNX sparse_initializer, where that is smaller.",
)
@click.option("--no-rearrange/--rearrange", help="With --sparsity: leave channels in the order in which they are.")
@click.option("--allow-approximate/--exact", help="Also prune where the result is only close to the masked network.")
@click.option("--inputs", type=click.Path(path_type=Path), help="Inputs to verify with (.npz).")
@shape_option
@click.option("--no-fold/--fold", help="Do not fold constants and normalisations.")
@click.option(
    "--pipeline", metavar="TEXT", help="Passes to run, as in slice{ratio=0.5},fold; after a budget, if there is one."
)
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=read_settings,
    shell_complete=recipes,
    help="A run in a file, such as a bundle's recipe.toml; options here win over it.",
)
@click.option("--plan", "plan_out", type=click.Path(path_type=Path), help="Write the plan here.")
@click.option("--apply-plan", type=click.Path(path_type=Path), help="Replay a plan instead of deciding anew.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@click.option("--force", is_flag=True, help="Replace an existing OUT.")
@click.option("--no-verify/--verify", help="Write without proof.")
@click.option("--seed", type=int, default=0, show_default=True, help="For drawn inputs.")
@json_option
@click.pass_context
def prune(context: click.Context, /, model: Path, **options: Any) -> None:
    """Prune MODEL, prove the result equal to the masked network, and write it.

    Settings also come from a recipe (--recipe), from the environment (SPA_PRUNE_MACS=0.5) and from [prune] of spa.toml;
    `spa config show --origin` says which."""
    from spa.cli import pipelined
    from spa.cli.judged import drift_of, metric_of
    from spa.cli.progress import stages
    from spa.cli.sparsity import thinning
    from spa.model import load, write_atomic
    from spa.pipeline import Result
    from spa.planning import Plan
    from spa.pruning import finish
    from spa.recipe_text import command
    from spa.thinning import judge_thin, thinned

    start = time.monotonic()
    options = settled(context, options)
    asked = {**options, "model": model}
    pipeline = pipelined.parsed(options)
    alone = pipelined.alone(options)
    tell_differences(context, asked)
    targets: tuple[str, ...] = options["targets"]
    out = destination(model, options["out"], targets)
    dry: bool = options["dry_run"]
    plan_out: Path | None = options["plan_out"]
    with stages(options["as_json"]) as stage:
        stage("reading")
        network = load(model)
        for note in network.notes:
            click.echo(f"note: {note}", err=True)
        if not dry:
            refuse_existing(out, options["force"], model)
        if plan_out is not None:
            refuse_existing(plan_out, True, model)
        if targets:
            check_targets(targets, options["cuda_archs"], options["precision"])
        sizes = sizes_of(network, parse_shapes(options["shapes"]))
        metric = metric_of(options)
        bisected = options["keep_accuracy"] is not None and not options["apply_plan"]
        dense_metric = metric.of_dense(network) if metric is not None and not bisected else None
        stage("analysing")
        calib = calibration(network, sizes, options)
        from spa import execution
        from spa.workbench import from_weights

        repair = None if options["no_compensate"] else "weights" if from_weights(options["calib"]) else calib
        with execution.on(options["workers"] or 0, options["cluster"]):
            decided, coupling, facts = decide(network, sizes, options, calib, metric, stage)
        before = cost_of(network, sizes)
        stage("pruning and verifying" if not options["no_verify"] else "pruning")
        from spa.inputs import load as load_inputs

        given = load_inputs(options["inputs"], network) if options["inputs"] else None
        how = {"check": not options["no_verify"], "seed": options["seed"], "inputs": given, "sizes": sizes}
        fold = not options["no_fold"]
        result = Result(network, decided) if alone else finish(network, decided, calib=repair, fold=fold, **how)
        for note in doubts(result.facts.get("repairs", [])):
            click.echo(f"note: {note}", err=True)
        assert isinstance(result.plan, Plan)
        thin = thinning(options, result.plan.sparsity)
        if thin:
            stage("thinning out")
            check = not options["no_verify"]
            result = thinned(network, result, thin, calib, check=check, inputs=given, sizes=sizes)
        if pipeline is not None:
            stage("running passes")
            result = pipelined.run(pipeline, result, options, given, sizes)
        judged = None if "sparsity" in result.facts or pipeline is not None else calib
        if calib and pipeline is not None:
            facts["drift"] = pipelined.judged(network, result.model, calib) | facts.get("drift", {})
        elif calib and not judged:
            stage("judging")
            repaired = not options["no_compensate"]
            found = judge_thin(network, decided, thin, calib, result, repair=repaired, sizes=sizes, fold=fold)
            facts["drift"] = found | facts.get("drift", {})
        told = result.plan or decided
        verified = result.facts["verified"]
        document: dict[str, Any] = {
            "schema": 1,
            "input": str(model),
            "output": None if dry else str(out),
            "before": before,
            "after": cost_of(result.model, sizes),
            "nonzero": nonzero(result.model),
            "verified": {k: verified[k] for k in ("ok", "max_error", "inputs")} if verified else None,
            "drift": drift_of(
                network,
                result.model,
                decided,
                judged,
                facts.get("drift", {}),
                metric,
                dense_metric,
                stage,
                repair=not options["no_compensate"],
                sizes=sizes,
                fold=fold,
            ),
            "groups": len(coupling.groups),
            "pruned_groups": sum(bool(g["removed"]) for g in told.groups),
            "blocked": [{k: b[k] for k in ("group", "reason", "node")} for b in told.blocked],
            "targets": {},
        }
        for key in ("repairs", "sparsity", "passes"):
            if result.facts.get(key):
                document[key] = result.facts[key]
        document |= measured(told, document["drift"])
        if not dry:
            if plan_out is not None and result.plan is not None:
                text = result.plan.to_json()
                write_atomic(plan_out, lambda p: p.write_text(text, encoding="utf-8"))
            stage("writing")
            write(network, result, out, targets, document, asked)
        document |= {"command": command(asked, Path.cwd()), "environment": versions()}
        document["seconds"] = round(time.monotonic() - start, 3)
    if options["as_json"]:
        print_json(document)
    else:
        show(document)


def destination(model: Path, out: Path | None, targets: tuple[str, ...]) -> Path:
    if out is None:
        return model.with_name(f"{model.stem}.spa" if targets else f"{model.stem}.pruned.onnx")
    if targets and out.suffix == ".onnx":
        raise click.UsageError("a target needs a folder: -o OUT without .onnx")
    return out


def check_targets(targets: tuple[str, ...], cuda_archs: str | None, precision: str | None) -> None:
    """Say what is wrong with a target before any work."""
    from spa.codegen.target import resolve

    for name in targets:
        resolve(name, None, cuda_archs, precision)


def cost_of(model: Model, sizes: dict[str, int]) -> dict[str, int]:
    from spa.cost import inspect

    cost = inspect(model, sizes)
    return {"params": cost.params, "macs": cost.macs, "bytes": cost.bytes}


def nonzero(model: Model) -> int:
    import numpy as np

    from spa.cost import is_parameter
    from spa.shapes import constants, tensor_of

    tensors = [t for v in constants(model.ir) if (t := tensor_of(v)) is not None and is_parameter(t)]
    return sum(int(np.count_nonzero(t.numpy())) for t in tensors)


def write(
    network: Model,
    result: Result,
    out: Path,
    targets: tuple[str, ...],
    document: dict[str, Any],
    options: dict[str, Any],
) -> None:
    if out.suffix == ".onnx":
        result.model.save(out, force=options["force"], sparse=options["sparse_initializer"])
        return
    from spa.cli.bundle import write_bundle

    recipe, report = records(options, out)
    document["targets"] = write_bundle(
        network,
        result,
        out,
        targets,
        document | report,
        recipe,
        parse_shapes(options["shapes"]),
        force=options["force"],
        cuda_archs=options["cuda_archs"],
        precision=options["precision"],
    )


def measured(plan: Plan, drift: dict[str, Any]) -> dict[str, Any]:
    """What was measured on the way, for the report: error curves of groups, and the networks that a search tried."""
    found: dict[str, Any] = {}
    if curves := [{"group": g["id"], **g["curve"]} for g in plan.groups if "curve" in g]:
        found["curves"] = curves
    if trials := drift.get("metric", {}).get("trials") or drift.get("trials"):
        found["pareto"] = trials
    return found


def show(document: dict[str, Any]) -> None:
    from rich.table import Table

    from spa.cli.judged import lines
    from spa.cli.terminal import console, say
    from spa.cli.terminal import show as show_table

    table = Table("", "before", "after", "kept")
    for key in ("params", "macs", "bytes"):
        a, b = document["before"][key], document["after"][key]
        table.add_row(key, human(a), human(b), f"{b / a:.1%}" if a else "-")
    out = console()
    show_table(out, table)
    verified = document["verified"]
    proof = (
        f"equal to the masked network on {verified['inputs']} inputs, error {verified['max_error']:.1e}"
        if verified
        else "not verified"
    )
    say(
        out,
        f"{document['pruned_groups']} of {document['groups']} groups pruned, {len(document['blocked'])} blocked; {proof}",
    )
    if "sparsity" in document:
        from spa.cli.sparsity import show as show_sparsity

        show_sparsity(out, document["sparsity"])
    if "passes" in document:
        from spa.cli.pipelined import show as show_passes

        show_passes(out, document["passes"])
    for text in lines(document["drift"]):
        say(out, text)
    for name, target in document["targets"].items():
        say(out, f"{name}: {target['path']} ({human(target['bytes'])}B, {human(target['code_bytes'])}B of it code)")
    for b in document["blocked"][: 5 if document["pruned_groups"] else 20] if not document["pruned_groups"] else []:
        where = f" (node '{b['node']}')" if b["node"] else ""
        say(out, f"blocked: {b['group']}: {b['reason']}{where}")
    say(out, f"{document['output'] or 'dry run: nothing was written'}  ({document['seconds']} s)")
