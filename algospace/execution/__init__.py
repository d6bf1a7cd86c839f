"""Execution: market mechanics, orders, the trading session, journal and ledger."""

from algospace.execution.decision import Decision, Policy, Reason, RiskProposal
from algospace.execution.journal import FileJournal, Journal, MemoryJournal, ResumingJournal
from algospace.execution.ledger import fold
from algospace.execution.replay import OrderArrays, run_precomputed
from algospace.execution.result import SessionResult
from algospace.execution.session import MarketBar, Session, TableFeed
from algospace.execution.venue import Order, SimulatedVenue, Venue

__all__ = [
    "Decision", "FileJournal", "Journal", "MarketBar", "MemoryJournal", "Order", "OrderArrays", "Policy", "Reason",
    "ResumingJournal", "RiskProposal", "Session", "SessionResult", "SimulatedVenue", "TableFeed", "Venue", "fold",
    "run_precomputed",
]
