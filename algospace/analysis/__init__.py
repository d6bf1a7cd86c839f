"""Analysis: metrics, baselines, overfitting statistics, unit scores and the report."""
