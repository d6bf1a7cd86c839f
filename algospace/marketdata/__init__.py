"""Market data: importers, quality rules, catalog."""

from algospace.marketdata.catalog import Catalog
from algospace.marketdata.importers import ImportResult, import_file
from algospace.marketdata.options import ImportOptions
from algospace.marketdata.quality import QualityReport
from algospace.marketdata.source import read_source

__all__ = ["Catalog", "ImportOptions", "ImportResult", "QualityReport", "import_file", "read_source"]
