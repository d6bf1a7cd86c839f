"""The peer of benchmarks.live, run by its own Python: NautilusTrader on the ticks in an .npz file.

    python _nautilus_peer.py TICKS.npz noop|bars

Prints one line of JSON: processor seconds of `engine.run()` alone. The tick objects are made before it, so making
them is not counted. `noop`: a strategy that takes every trade tick and does nothing; `bars`: it also has the
engine build 5-minute bars.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
from nautilus_trader.backtest.engine import BacktestEngine, BacktestEngineConfig
from nautilus_trader.config import LoggingConfig
from nautilus_trader.model.currencies import USD
from nautilus_trader.model.data import BarType, TradeTick
from nautilus_trader.model.enums import AccountType, AggressorSide, OmsType
from nautilus_trader.model.identifiers import TradeId, Venue
from nautilus_trader.model.objects import Money, Price, Quantity
from nautilus_trader.test_kit.providers import TestInstrumentProvider
from nautilus_trader.trading.strategy import Strategy


class Noop(Strategy):
    """Takes every tick, and every bar if it asks for bars, and does nothing."""

    def __init__(self, instrument_id: Any, bar_type: Any) -> None:
        super().__init__()
        self._instrument_id, self._bar_type = instrument_id, bar_type
        self.seen = self.bars = 0

    def on_start(self) -> None:
        self.subscribe_trade_ticks(self._instrument_id)
        if self._bar_type is not None:
            self.subscribe_bars(self._bar_type)

    def on_trade_tick(self, _tick: Any) -> None:
        self.seen += 1

    def on_bar(self, _bar: Any) -> None:
        self.bars += 1


def main() -> None:
    """Run once and print the figures."""
    ticks = np.load(sys.argv[1])
    engine = BacktestEngine(BacktestEngineConfig(logging=LoggingConfig(bypass_logging=True)))
    instrument = TestInstrumentProvider.es_future(2030, 12)
    venue = Venue(str(instrument.id.venue))
    engine.add_venue(venue, OmsType.NETTING, AccountType.MARGIN, starting_balances=[Money(1_000_000, USD)])
    engine.add_instrument(instrument)
    side, name = AggressorSide.NO_AGGRESSOR, TradeId("1")
    rows = zip(*(ticks[column].tolist() for column in ("ts", "price", "size")), strict=True)
    engine.add_data([TradeTick(instrument.id, Price(price, 2), Quantity(size, 0), side, name, ts, ts)
                     for ts, price, size in rows])  # fmt: skip
    bar_type = BarType.from_str(f"{instrument.id}-5-MINUTE-LAST-INTERNAL") if sys.argv[2] == "bars" else None
    strategy = Noop(instrument.id, bar_type)
    engine.add_strategy(strategy)
    begin = time.process_time()
    engine.run()
    seconds = time.process_time() - begin
    print(json.dumps({"seconds": seconds, "ticks": strategy.seen, "bars": strategy.bars}))


if __name__ == "__main__":
    main()
