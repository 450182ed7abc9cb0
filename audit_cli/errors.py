"""Every error the library raises on purpose. Each message is one line: what is wrong, where, and the remedy.

The exit code belongs to the error, so that `cli` maps without knowing causes. None of them is 0 or 1: those two codes
are verdicts, and an error is never a verdict.
"""


class AuditError(Exception):
    """Base of all deliberate errors. `exit_code` is what a command that ends with it returns."""

    exit_code = 4


class UsageError(AuditError):
    """The command, a path, the policy or a configuration is wrong; the user can mend it."""

    exit_code = 2


class CheckpointError(UsageError):
    """The checkpoint is malformed, hostile or ambiguous and was refused before anything in it was used."""


class DataError(UsageError):
    """The trusted data cannot be read as labelled images."""


class PolicyError(UsageError):
    """The policy file has an unknown key, a wrong type or an impossible value."""


class UnsupportedError(AuditError):
    """The input is well-formed, but nothing here can audit it: the answer is INCONCLUSIVE."""

    exit_code = 3


class BudgetExceeded(AuditError):
    """A time or memory budget given by the user was used up: the answer is INCONCLUSIVE."""

    exit_code = 3
