"""Which channels live and die together: rules per operator -> axis graph -> groups, and reasons for what is blocked."""

from __future__ import annotations

from spa.coupling.analysis import Blocked, Coupling, Group, analyze

__all__ = ["Blocked", "Coupling", "Group", "analyze"]
