"""Trades and quotes: import with filters, rules and clock check, and their catalog by instrument and UTC day."""

from algospace.marketdata.ticks.catalog import TickCatalog, TicksWritten
from algospace.marketdata.ticks.clock import ClockOffset
from algospace.marketdata.ticks.files import looks_like_quotes, looks_like_ticks
from algospace.marketdata.ticks.importer import TickImportResult, import_ticks
from algospace.marketdata.ticks.options import QuoteImportOptions, TickImportOptions
from algospace.marketdata.ticks.quality import TickQualityReport
from algospace.marketdata.ticks.quotes import QuoteImportResult, import_quotes

__all__ = ["ClockOffset", "QuoteImportOptions", "QuoteImportResult", "TickCatalog", "TickImportOptions",
           "TickImportResult", "TickQualityReport", "TicksWritten", "import_quotes", "import_ticks",
           "looks_like_quotes", "looks_like_ticks"]
