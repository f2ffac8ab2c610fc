"""Reference of ``restore_accumulate_``: slow and obvious, and the definition of the result."""

from __future__ import annotations

from typing import Any

from ..._arguments import Restore, Sum, check_restore
from ..._reference import write_sum


def restore_accumulate_(*arguments: Any) -> None:
    terms = Restore(*arguments)
    check_restore(terms)
    seed, rest = terms.seed, (terms.streams, terms.kind)
    write_sum(terms.params, terms.params, Sum(seed, terms.restore_coefficient, *rest))
    write_sum(terms.grads, terms.grads, Sum(seed, terms.grad_coefficient, *rest))
