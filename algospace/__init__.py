"""AlgoSpace: one computation from tick to decision, for teams of trading agents."""

__version__ = "0.1.0"
