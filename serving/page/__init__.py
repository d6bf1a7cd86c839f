"""The trading page: its static files, and recordings of backtests that it replays."""
