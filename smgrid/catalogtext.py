"""The form of a catalog file: pydantic models that check its text and describe it to editors."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Field

from smgrid.yamltext import StrictModel

CATALOG_VERSION = 1

Convention = Literal["sigma0", "gamma0"]
Signing = Literal["none", "planetary-computer", "earthdata"]


class StacText(StrictModel):
    """Which items of a STAC API or static catalog are read."""

    href: str
    """Root URL of an API, or a catalog.json: a URL or relative to this file."""
    collection: str
    """Collection id."""
    sign: Signing = "none"
    """How asset URLs are signed when they are read."""
    query: dict[str, Any] = Field(default_factory=dict)
    """Conditions on item properties, in the form of the STAC query extension."""


class SourceText(StrictModel):
    """One source of data."""

    loader: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """Dotted path package.module:function."""
    provides: Annotated[list[str], Field(min_length=1)]
    """Canonical variables."""
    paths: list[str] = Field(default_factory=list)
    """Files, globs or URLs; relative to this file; ${VAR} from the environment (no secrets)."""
    stac: StacText | None = None
    """A STAC collection."""
    assets: dict[str, str] = Field(default_factory=dict)
    """Variable -> STAC asset key or name inside the file; a file if there is neither stac nor
    paths."""
    units: dict[str, str] = Field(default_factory=dict)
    """Variable -> units as stored."""
    scale: dict[str, float] = Field(default_factory=dict)
    """Variable -> factor from stored counts to units."""
    offset: dict[str, float] = Field(default_factory=dict)
    """Variable -> value of count 0."""
    nodata: float | None = None
    """Stored value that means missing."""
    convention: Convention | None = None
    """Normalisation area of backscatter; needed for vv and vh."""
    native_resolution: Annotated[float, Field(gt=0)] | None = None
    """Pixel size of the provider in metres; needed for ndvi, t2m and tp."""
    crs: str | None = None
    """CRS of files that carry none or a broken one."""
    first_day: Annotated[date, Field(strict=False)] | None = None
    """First day that the provider has."""
    last_day: Annotated[date, Field(strict=False)] | None = None
    """Last day that the provider has, if the record has ended."""
    cadence: str = ""
    """How often the provider adds data, in words: per pass, daily, every 8 days, static."""
    credentials: list[Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]] = Field(
        default_factory=list
    )
    """Environment variables that hold what the provider asks for, never the values themselves."""
    fallbacks: list[str] = Field(default_factory=list)
    """Other sources, of this file or of those opened with it, that stand in for this one where it
    has nothing: dates, passes, or, for static data, regions; in order."""
    licence: str = ""
    """SPDX identifier or name of the data's licence."""
    citation: str = ""
    """How the provider asks to be cited."""
    note: str = ""
    """For people."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What only this loader understands."""


class CatalogText(StrictModel):
    """A catalog of smgrid: where each variable comes from."""

    smgrid_catalog: Literal[1]
    """Version of this format."""
    name: Annotated[str, Field(min_length=1)]
    """Short name."""
    title: str
    """One line for people."""
    sources: Annotated[dict[str, SourceText], Field(min_length=1)]
    """Sources by free names."""
