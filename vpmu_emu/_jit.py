"""The only importer of numba: how every compiled function of the package is declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

F = TypeVar("F", bound=Callable[..., Any])


def jit(*, entry: bool = False, inline: bool = False) -> Callable[[F], F]:
    """Declare a compiled function; `entry` marks the few that Python calls."""

    def decorate(function: F) -> F:
        compiled: F = numba.njit(
            cache=True,
            nogil=True,
            error_model="numpy",
            no_cpython_wrapper=not entry,
            no_cfunc_wrapper=True,
            inline="always" if inline else "never",
        )(function)
        return compiled

    return decorate
