"""What runs on the GPU, in order, as plain data: every launch with its grid and where each of its parameters points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from spa.codegen.plan_memory import Layout
from spa.codegen.program import Call, Program, Ref
from spa.codegen.tvm_api.cuda import Device, Launch

SCHEMA = 1
Space = Literal["input", "output", "weights", "arena"]


@dataclass(frozen=True)
class Place:
    """An input or output by its index, or a byte of the weights or the arena."""

    space: Space
    at: int


@dataclass(frozen=True)
class Entry:
    """One launch; `call` counts the network's kernel calls, as the manifest lists them."""

    call: int
    launch: Launch
    arguments: tuple[Place, ...]


@dataclass(frozen=True)
class Table:
    """Launches in order; then `copies` of values that are outputs but live elsewhere: (from, output, bytes)."""

    entries: tuple[Entry, ...]
    copies: tuple[tuple[Place, int, int], ...]

    def to_json(self) -> dict[str, Any]:
        """`launches` and `copies` of the launch table's file."""
        return {
            "launches": [
                {
                    "call": e.call,
                    "symbol": e.launch.symbol,
                    "grid": list(e.launch.grid),
                    "block": list(e.launch.block),
                    "shared_bytes": e.launch.shared,
                    "arguments": [{"space": a.space, "at": a.at} for a in e.arguments],
                }
                for e in self.entries
            ],
            "copies": [
                {"from": {"space": place.space, "at": place.at}, "output": output, "bytes": size}
                for place, output, size in self.copies
            ],
        }


def build_table(program: Program, layout: Layout, device: Device) -> Table:
    """The launches of every call of the program."""
    entries = [
        Entry(i, launch, _arguments(call, launch, scratch, layout))
        for i, (call, scratch) in enumerate(zip(program.calls, layout.scratch, strict=True))
        for launch in device.launches[call.kernel]
    ]
    copies = tuple((_place(ref, layout), output, program.outputs[output].nbytes) for ref, output in layout.copies)
    return Table(tuple(entries), copies)


def _arguments(call: Call, launch: Launch, scratch: int, layout: Layout) -> tuple[Place, ...]:
    return tuple(
        _place(call.args[p.index], layout) if p.kind == "argument" else Place("arena", scratch + p.index)
        for p in launch.arguments
    )


def _place(ref: Ref, layout: Layout) -> Place:
    if ref.kind == "input":
        return Place("input", ref.index)
    if ref.kind == "const":
        return Place("weights", layout.consts[ref.index])
    if ref.index in layout.direct:
        return Place("output", layout.direct[ref.index])
    return Place("arena", layout.values[ref.index])


def check_against(table: Table, parameters: Mapping[str, Sequence[str]]) -> None:
    """Every launch must give as many pointers as its kernel takes; `parameters` by symbol, as the CUDA C has them."""
    for entry in table.entries:
        expected = len(parameters[entry.launch.symbol])
        assert len(entry.arguments) == expected, (
            f"{entry.launch.symbol}: {len(entry.arguments)} of {expected} arguments"
        )
