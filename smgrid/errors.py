"""The exceptions of smgrid: one small tree, so that callers can catch by cause.

Every message names the input, what was expected, what was found and what to do. ``exit_code`` is
what the command line returns for that cause; 1 is left to unexpected failures and 2 to bad usage.
"""

from typing import ClassVar


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


class LayoutError(SmgridError, ValueError):
    """A cube cannot provide the inputs that a model was trained with."""

    exit_code: ClassVar[int] = 5


class BundleError(SmgridError, ValueError):
    """A model on disk is damaged, incomplete or not one of smgrid's."""

    exit_code: ClassVar[int] = 5
