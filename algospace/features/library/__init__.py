"""The general library: some seventy indicator columns over base bars, one compiled step for history and live."""

from algospace.features.library.built_in import BUILT_IN, describe_built_in
from algospace.features.library.column import Column
from algospace.features.library.registry import FAMILIES, NAMES, REGISTRY, describe
from algospace.features.library.step import compute, library_indicator

__all__ = ["BUILT_IN", "FAMILIES", "NAMES", "REGISTRY", "Column", "compute", "describe", "describe_built_in",
           "library_indicator"]
