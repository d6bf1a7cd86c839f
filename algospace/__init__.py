"""AlgoSpace: one computation from tick to decision, for teams of trading agents."""

from algospace.compiled import use_versioned_cache

__version__ = "0.3.0"

use_versioned_cache()
