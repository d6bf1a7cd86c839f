"""Contract specifications: what one tick is, what it is worth, when the instrument trades.

Sources: CME contract specifications (ES 358, NQ 359, MES 353, MNQ 361, YM CBOT 27, RTY 393, CL NYMEX 200).
"""

from __future__ import annotations

from dataclasses import dataclass

from algospace.errors import ConfigError


@dataclass(frozen=True)
class Session:
    """Trading hours in exchange-local time. `day_start_hour` is where the trading day changes."""

    zone: str
    open: str
    close: str
    days: str
    day_start_hour: int
    bars_per_year: int  # base (5-minute) bars in a year, for annualising


CME = Session("America/Chicago", "17:00", "16:00", "Sun-Fri", 17, 69_552)
US_EQUITY = Session("America/New_York", "09:30", "16:00", "Mon-Fri", 0, 19_656)
AROUND_THE_CLOCK = Session("UTC", "00:00", "24:00", "Mon-Sun", 0, 105_120)


@dataclass(frozen=True)
class Instrument:
    """`multiplier` is account currency per point and contract; `commission` per contract and side."""

    symbol: str
    name: str
    tick_size: float
    multiplier: float
    currency: str
    session: Session
    commission: float
    kind: str

    @property
    def tick_value(self) -> float:
        """Account currency per tick and contract."""
        return self.tick_size * self.multiplier


def _future(symbol: str, name: str, tick: float, multiplier: float, commission: float = 2.25) -> Instrument:
    return Instrument(symbol, name, tick, multiplier, "USD", CME, commission, "future")


def _equity(symbol: str, name: str) -> Instrument:
    return Instrument(symbol, name, 0.01, 1.0, "USD", US_EQUITY, 0.005, "equity")


INSTRUMENTS: dict[str, Instrument] = {
    i.symbol: i
    for i in (
        _future("ES", "E-mini S&P 500", 0.25, 50.0),
        _future("NQ", "E-mini Nasdaq-100", 0.25, 20.0),
        _future("YM", "E-mini Dow", 1.0, 5.0),
        _future("RTY", "E-mini Russell 2000", 0.1, 50.0),
        _future("MES", "Micro E-mini S&P 500", 0.25, 5.0, 0.62),
        _future("MNQ", "Micro E-mini Nasdaq-100", 0.25, 2.0, 0.62),
        _future("CL", "Crude Oil", 0.01, 1000.0),
        Instrument("BTCUSD", "Bitcoin / US dollar", 0.01, 1.0, "USD", AROUND_THE_CLOCK, 0.0, "crypto"),
        Instrument("BTCUSDT", "Bitcoin perpetual", 0.1, 1.0, "USDT", AROUND_THE_CLOCK, 0.0, "crypto"),
        Instrument("VIX", "Cboe Volatility Index", 0.01, 1.0, "USD", US_EQUITY, 0.0, "index"),
        Instrument("SYNTH", "Synthetic market", 0.25, 50.0, "USD", CME, 2.25, "future"),
        _equity("SPY", "SPDR S&P 500 ETF"),
        _equity("QQQ", "Invesco QQQ"),
        _equity("EQUITY", "any US-listed share"),
    )
}


def instrument(symbol: str) -> Instrument:
    """The specification of `symbol`; ConfigError names the known ones."""
    try:
        return INSTRUMENTS[symbol.upper()]
    except KeyError:
        known = ", ".join(sorted(INSTRUMENTS))
        raise ConfigError(f"unknown instrument '{symbol}'; known: {known}") from None
