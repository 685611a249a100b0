"""Errors that a user can cause, each one sentence: what, where, what to do.

A `UserError` reaches the user as one line without a traceback (unless `--debug` is given) and ends
the process with its exit code: 2 options, data or files; 3 environment; 4 diverged; 5 input/output.
"""


class UserError(Exception):
    """Something the user can put right."""

    exit_code = 2


class OptionError(UserError):
    """A command-line option, a configuration key or a network argument is wrong."""


class DatasetError(UserError):
    """A dataset file, an image or a caption is wrong."""


class UnreadableError(DatasetError):
    """A file of the data cannot be read, and the drive or its rights are at fault, not the file."""


class CheckpointError(UserError):
    """A weights file is missing, damaged, or of another kind than asked for."""


class EnvironmentFault(UserError):
    """The machine or an installed package cannot do what was asked."""

    exit_code = 3


class OutputError(UserError):
    """Something could not be written."""

    exit_code = 5


class DivergedError(UserError):
    """Losses or gradients are not finite any more."""

    exit_code = 4
