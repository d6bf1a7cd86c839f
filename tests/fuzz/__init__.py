"""Fuzzing: run by hand for minutes; what it found is kept and replayed by the test suite."""
