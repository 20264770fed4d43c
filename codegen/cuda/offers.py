"""Who is asked for a kernel, in this order."""

from __future__ import annotations

from spa.codegen.cuda import batched, families

OFFERS = (families.offer, batched.offer)
