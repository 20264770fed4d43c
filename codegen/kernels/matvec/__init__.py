"""One row times a constant matrix that is sparse or quantised: y[m] = sum over k of x[k] W[k, m], features m in vector lanes.

With one row every weight is used once, so the time is that of reading them: what counts is bytes per weight, as long as
what it takes to decode them keeps up.

- `bits`: half the weights or more are zero, anywhere: a bit each, and the survivors
- `groups`: N of M inputs kept by each feature: their values and positions
- `codes`: all of them, in 8 or 4 bits

`grid` sees from the values whether codes may stand for them, `choose` compares the forms, `writer` has the code that they
share.
"""

from __future__ import annotations

from spa.codegen.kernels.matvec.choose import offer

__all__ = ["offer"]
