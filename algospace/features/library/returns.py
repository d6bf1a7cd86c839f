"""Log returns over several horizons, gaps, and the return of the session so far."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from algospace.features.library.column import Column
from algospace.features.library.core import close_ago
from algospace.types import FloatArray

_FAMILY = "returns"
_SOURCE = "Campbell, Lo, MacKinlay 1997, The Econometrics of Financial Markets, 1.4"


def _column(name: str, warm_up: int, formula: str) -> Column:
    return Column(name=name, family=_FAMILY, unit="log", warm_up=warm_up, formula=formula, source=_SOURCE,
                  parity="odd", mirror="ratio")  # fmt: skip


COLUMNS = (
    *(_column(f"log_return_{n}", n, f"ln(close / close[{n}])") for n in (1, 5, 10, 20)),
    _column("gap_1", 1, "ln(open / close[1])"),
    _column("session_gap", 0, "ln(open of the session's first bar / close before it); 0 in the first session"),
    _column("session_return", 0, "ln(close / open of the session's first bar)"),
)


@nb.njit(cache=True, error_model="numpy")
def update(v: Any, session: Any, bar: Any, out: FloatArray) -> None:
    """out as of COLUMNS."""
    out[0] = np.log(v.close / v.last_close)
    out[1] = np.log(v.close / close_ago(v, 5))
    out[2] = np.log(v.close / close_ago(v, 10))
    out[3] = np.log(v.close / close_ago(v, 20))
    out[4] = np.log(bar.open / v.last_close)
    out[5] = session.gap
    out[6] = np.log(v.close / session.open)
