"""Einsum: a letter is an axis. Kept letters pass, summed ones end here."""

from __future__ import annotations

from spa.coupling.axes import Axes, Op, Slot
from spa.coupling.rules import Table, rows


def terms(equation: str, ranks: list[int], rank: int) -> tuple[list[list[str]], list[str]] | None:
    """Labels of every operand's axes and of the output's; axes under an ellipsis are labelled from the right.
    None where the equation does not fit the ranks.

    >>> terms("b...i, ij", [3, 2], 3)
    ([['b', '...0', 'i'], ['i', 'j']], ['...0', 'b', 'j'])
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    operands = [expand(text, n) for text, n in zip(left.split(","), ranks, strict=False)]
    if len(operands) != len(left.split(",")) or any(labels is None for labels in operands):
        return None
    found = [labels or [] for labels in operands]
    if not arrow:
        letters = left.replace(",", "").replace("...", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    out = expand(right, rank)
    return None if out is None else (found, out)


def expand(text: str, rank: int) -> list[str] | None:
    before, dots, after = text.partition("...")
    hidden = rank - len(before) - len(after)
    if hidden < 0 or (hidden and not dots):
        return None
    return [*before, *(f"...{k}" for k in range(hidden)[::-1]), *after]


def einsum(op: Op, g: Axes) -> None:
    equation, y = op.attr("equation"), op.out
    operands = [v for v in op.inputs if v is not None]
    read = terms(
        equation.decode() if isinstance(equation, bytes) else equation,
        [len(op.shape(v)) for v in operands],
        len(op.shape(y)),
    )
    if read is None:
        for v in [*operands, y]:
            g.freeze_all(v, f"the equation '{equation}' does not fit the ranks of the operands")
        return
    held: dict[str, list[Slot]] = {}
    for v, labels in zip(operands, read[0], strict=True):
        for axis, label in enumerate(labels):
            if labels.count(label) > 1:
                g.freeze((v, axis), f"Einsum takes the diagonal over '{label}'")
            if op.shape(v)[axis] > 1:
                held.setdefault(label, []).append((v, axis))
    for label, slots in held.items():
        for slot in slots[1:]:
            g.same(slots[0], slot)
        zero = any(g.zero(s) for s in slots)
        if label in read[1]:
            out = (y, read[1].index(label))
            g.same(slots[0], out)
            g.mark(out, zero)
        elif not zero:
            g.freeze(slots[0], "summed against a value that masking does not make zero", approximate=True)


RULES: Table = rows(einsum, "Einsum")
