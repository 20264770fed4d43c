"""onnx-graphsurgeon and back, and passes written against it in our pipelines.

    import onnx_graphsurgeon as gs
    from spa.interop.graphsurgeon import surgery

    @surgery
    def drop_dropout(graph: gs.Graph, *, keep_names: bool = True) -> None:
        "Take Dropout out of the way."
        for node in [n for n in graph.nodes if n.op == "Dropout"]:
            ...
        graph.cleanup()

    spa.Pipeline.parse("drop_dropout{keep_names=false},fold")     # once it is registered under spa.passes

graphsurgeon's own export loses what it does not model (metadata, documentation, overridable initializers, attribute types and
value types it does not know) and may raise the IR version. What a pass did not touch is therefore taken from the network as it
was: an element counts as untouched where the graph's export equals that of an untouched import. Weights in external files
stay there until a pass looks at their values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, overload

import onnx
import onnx_ir as ir

from spa.errors import CheckFailed, MissingTool, SpaError, UsageError
from spa.interop.untouched import restore
from spa.model import Model, load
from spa.pipeline import Result

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

FOREIGN = (
    "map_type",
    "optional_type",
    "opaque_type",
    "sparse_tensor_type",
)  # it imports these types, but cannot export them


def library() -> Any:
    """The package. Raises `MissingTool` where it is not installed."""
    try:
        import onnx_graphsurgeon
    except ImportError as error:
        hint = "pip install onnx-graphsurgeon"
        raise MissingTool(f"onnx-graphsurgeon cannot be imported: {error}", hint=hint) from None
    return onnx_graphsurgeon


def to_graphsurgeon(model: Model) -> gs.Graph:
    """A graph of its own: changing it does not change `model`."""
    return imported(ir.to_proto(model.ir), folder_of(model))


def from_graphsurgeon(graph: gs.Graph, like: Model | None = None) -> Model:
    """The network of a graph. `like`: the one it was made from; what the graph does not know is taken from there.

    Raises `CheckFailed` where the graph is no valid network."""
    exported = export(graph)
    if like is not None:
        original = ir.to_proto(like.ir)
        restore(exported, original, export(imported(ir.to_proto(like.ir), None)))
    try:
        model = load(exported)
    except SpaError as error:
        hint = "graph.cleanup().toposort(), and every tensor produced before it is read"
        raise CheckFailed(f"the graph is no valid network: {error.what}", error.where, hint) from None
    if like is None:
        return model
    if (folder := folder_of(like)) is not None:
        ir.external_data.set_base_dir(model.ir.graph, folder)
    return Model(model.ir, like.source, list(like.notes))


def folder_of(model: Model) -> Path | None:
    """Where the files lie that the external weights are in."""
    if model.source is not None:
        return model.source.parent
    values = (v.const_value for v in model.ir.graph.initializers.values())
    return next((Path(t.base_dir) for t in values if isinstance(t, ir.ExternalTensor)), None)


def imported(proto: onnx.ModelProto, folder: Path | None) -> gs.Graph:
    surgeon = library()
    with on_stderr():
        graph = surgeon.import_onnx(proto)
    for inner in [graph, *graph.subgraphs(recursive=True)]:
        for tensor in [*inner.tensors().values(), *inner.inputs, *inner.outputs]:
            if isinstance(tensor, surgeon.Variable) and tensor.type in FOREIGN:
                tensor.dtype = tensor.shape = None
            elif isinstance(tensor, surgeon.Constant) and external(tensor):
                tensor._values = stored()(tensor._values.tensor, folder)
    return graph


def external(tensor: gs.Constant) -> bool:
    proto = getattr(tensor._values, "tensor", None)
    return isinstance(proto, onnx.TensorProto) and proto.data_location == onnx.TensorProto.EXTERNAL


@functools.cache
def stored() -> type[Any]:
    """Lazy values that know the folder of their file; graphsurgeon's look for it in the working directory."""
    from onnx_graphsurgeon.ir.tensor import LazyValues

    class Stored(LazyValues):  # type: ignore[misc]
        def __init__(self, tensor: onnx.TensorProto, folder: Path | None) -> None:
            super().__init__(tensor)
            self.folder = folder

        def load(self) -> Any:
            return onnx.numpy_helper.to_array(self.tensor, str(self.folder or "")).copy()

    return Stored


def export(graph: gs.Graph) -> onnx.ModelProto:
    surgeon = library()
    for inner in [graph, *graph.subgraphs(recursive=True)]:
        for tensor in inner.tensors().values():
            if isinstance(tensor, surgeon.Constant) and not hasattr(tensor._values, "tensor"):
                tensor.data_location = None  # its values were read: they are in memory now
    try:
        with on_stderr():
            found: onnx.ModelProto = surgeon.export_onnx(graph, do_type_check=False)
    except Exception as error:  # of any kind: it has an error class, but assertions and KeyErrors come too
        what = f"onnx-graphsurgeon cannot export the graph: {type(error).__name__}: {error}"
        raise CheckFailed(what[:400], hint="values as numpy arrays, dtypes that ONNX has") from None
    return found


@contextlib.contextmanager
def on_stderr() -> Iterator[None]:
    """Its log goes to stdout, which is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


# Passes ----------------------------------------------------------------------------------------------------------

Function = Callable[..., Any]


@overload
def surgery(function: Function, /) -> type[Any]: ...
@overload
def surgery(*, name: str = "", exact: bool = False) -> Callable[[Function], type[Any]]: ...


def surgery(function: Function | None = None, /, *, name: str = "", exact: bool = False) -> Any:
    """A pass (`spa.pipeline`) of a function that changes a graphsurgeon graph in place, or returns another.

    Parameters after the graph are the pass's options and need types and defaults; what it is called is the function's name,
    or `name`. A dict that it returns is told as the pass's facts. `exact`: it promises the same numbers, which
    `spa prune --pipeline` then holds it to."""
    if function is None:
        return lambda f: surgery_of(f, name or f.__name__, exact)
    return surgery_of(function, name or function.__name__, exact)


def surgery_of(function: Function, name: str, exact: bool) -> type[Any]:
    _, *options = inspect.signature(function).parameters.values()
    hints = typing.get_type_hints(function, localns={"gs": _Anything()})
    fields: list[Any] = []
    for p in options:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or p.name not in hints:
            raise UsageError(f"the option '{p.name}' of the pass '{name}' has no type", hint=f"{p.name}: int = 1")
        default = () if p.default is p.empty else (dataclasses.field(default=p.default),)
        fields.append((p.name, hints[p.name], *default))

    def run(self: Any, model: Model) -> Result:
        graph = to_graphsurgeon(model)
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        with on_stderr():
            found = function(graph, **given)
        facts = found if isinstance(found, dict) else {}
        changed = graph if found is None or isinstance(found, dict) else found
        with on_stderr():
            changed.toposort(mode="nodes")  # its order of functions does not end where one is called in a branch
        return Result(from_graphsurgeon(changed, model), facts=facts)

    namespace = {
        "name": name,
        "exact": exact,
        "run": run,
        "__doc__": function.__doc__,
        "function": staticmethod(function),
    }
    made = dataclasses.make_dataclass(function.__name__, fields, namespace=namespace, frozen=True, kw_only=True)
    made.__annotations__ |= {"name": ClassVar[str], "exact": ClassVar[bool]}
    made.__module__, made.__qualname__ = function.__module__, function.__qualname__
    return made


class _Anything:
    """Stands for the package where a module imports it for type checking alone."""

    def __getattr__(self, name: str) -> Any:
        return Any
