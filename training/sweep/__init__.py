"""The parts of a sweep: its configuration, its tables, its trials and its record. `training.tune` runs it."""
