"""An own indicator in one file: where the close lies in the range of the last 24 base bars, and how fast it moves.

Try it:  algospace check lookahead market --instrument NQ --indicator docs/examples/my_indicator.py
"""

import numba as nb
import numpy as np

from algospace.features import Indicator

WINDOW = 24
STATE = np.dtype([("count", "i8"), ("ema", "f8"), ("high", "f8", (WINDOW,)), ("low", "f8", (WINDOW,))], align=True)


def new_state():
    """Before the first bar. One record: numbers and fixed-length arrays, so that it can be saved."""
    return np.zeros(1, STATE)


@nb.njit
def update(state, bar, out):
    """Take one closed base bar; write one value per name in `columns`. What is not written is NaN (warm-up)."""
    s = state[0]
    place = s.count % WINDOW  # a ring of the last WINDOW bars
    s.high[place], s.low[place] = bar.high, bar.low
    s.count += 1
    s.ema = bar.close if s.count == 1 else s.ema + 2.0 / (WINDOW + 1.0) * (bar.close - s.ema)
    if s.count >= WINDOW:
        top, bottom = s.high.max(), s.low.min()
        out[0] = (bar.close - bottom) / (top - bottom) if top > bottom else 0.5
        out[1] = bar.close / s.ema - 1.0


INDICATOR = Indicator("range_place", ("range_place_24", "ema_distance_24"), new_state, update)
