"""Checks of size and cost, for continuous integration: budgets, a committed baseline, and the layers at fault.

`config` says what is asked, `metrics` and `running` measure it, `baseline` remembers it, `compare` holds the one against
the other, `checked` does these in turn, and `formats` tells the result.
"""

from spa.checking.checked import Report, check

__all__ = ["Report", "check"]
