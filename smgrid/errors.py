"""The exceptions of smgrid: one small tree, so that callers can catch by cause.

Every message names the input, what was expected, what was found and what to do. ``exit_code`` is
what the command line returns for that cause; 1 is left to unexpected failures and 2 to bad usage.
"""

from typing import Any, ClassVar


class SmgridError(Exception):
    """Base of every error that smgrid raises on purpose."""

    exit_code: ClassVar[int] = 1


class ConfigError(SmgridError, ValueError):
    """An argument, catalog or configuration file is not valid."""

    exit_code: ClassVar[int] = 2


class GridError(ConfigError):
    """A target grid cannot be made, or two grids do not fit together."""


class CatalogError(ConfigError):
    """A catalog names something that does not exist or is not understood."""


class WindowError(ConfigError):
    """A period cannot hold the one-year window that a model needs."""


class MissingDependencyError(SmgridError, ImportError):
    """An optional package is needed for what was asked."""

    exit_code: ClassVar[int] = 2


class SourceError(SmgridError):
    """An input could not be read or is not what its catalog entry says."""

    exit_code: ClassVar[int] = 3


class AssetError(SourceError):
    """One file of a provider could not be read, after as many attempts as are worth it.

    Parameters
    ----------
    message
        For people.
    asset
        The file as the provider names it, without signature.
    attempts
        How often it was tried.
    reason
        What went wrong the last time.
    """

    def __init__(
        self, message: str, *, asset: str = "", attempts: int = 1, reason: str = ""
    ) -> None:
        # Only the message is an argument of the exception: the rest travels between processes in
        # its dictionary.
        super().__init__(message)
        self.asset = asset
        self.attempts = attempts
        self.reason = reason


class NoDataError(SourceError):
    """A region and period hold no usable data of a required input."""


class SchemaError(SourceError, ValueError):
    """A variable has the wrong units, dimensions, type or values out of its valid range."""


class StoreError(SmgridError):
    """A store cannot be written or read, or is not what it should be."""

    exit_code: ClassVar[int] = 4


class TemplateMismatchError(StoreError):
    """A store exists already and was made for something else."""


class IncompleteStoreError(StoreError):
    """A store lacks units of work that its template promises."""


class UnitsFailedError(StoreError):
    """Units of a store could not be written; all others are there.

    Parameters
    ----------
    message
        For people.
    report
        What the write did, with the units that failed (`smgrid.cube.store.WriteReport`).
    """

    def __init__(self, message: str, *, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


class StoreInUseError(StoreError):
    """Another process writes to the store."""


class LayoutError(SmgridError, ValueError):
    """A cube cannot provide the inputs that a model was trained with."""

    exit_code: ClassVar[int] = 5


class BundleError(SmgridError, ValueError):
    """A model on disk is damaged, incomplete or not one of smgrid's."""

    exit_code: ClassVar[int] = 5
