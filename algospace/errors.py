"""The one error tree.

    AlgoSpaceError
    ├── UserError            the input or the usage is wrong: exit code 2, one clear line
    │   ├── InputError       a data file breaks a rule (names file, row and rule)
    │   ├── ConfigError      a configuration key or value is wrong
    │   ├── SchemaError      a table or bundle does not fit the model
    │   └── BundleError      a bundle is damaged or incomplete
    └── InternalError        ours: exit code 1

A message says what was received and what to do about it.
"""


class AlgoSpaceError(Exception):
    """Base of every error that AlgoSpace raises on purpose."""

    exit_code = 1


class UserError(AlgoSpaceError):
    """The caller's input or usage is wrong."""

    exit_code = 2


class InputError(UserError):
    """A data file breaks a rule.

    `row` is the 1-based line in the file (the header is line 1), or None when the whole file is meant.
    """

    def __init__(self, file: object, rule: str, fix: str, row: int | None = None) -> None:
        where = f"{file}" if row is None else f"{file}, row {row}"
        super().__init__(f"{where}: {rule}; {fix}")
        self.file, self.rule, self.fix, self.row = str(file), rule, fix, row


class ConfigError(UserError):
    """A configuration file, key or value is wrong."""


class SchemaError(UserError):
    """A table's or bundle's schema differs from what the model was trained on."""


class BundleError(UserError):
    """A bundle is damaged, incomplete or of another version."""


class InternalError(AlgoSpaceError):
    """Something that should be impossible happened inside AlgoSpace."""
