"""Where smgrid keeps what it fetched, so that nothing is fetched twice."""

import os
from pathlib import Path

import pooch

CACHE_VARIABLE = "SMGRID_CACHE"
"""Environment variable that names the folder of the cache."""


def cache_folder(*parts: str) -> Path:
    """Return a folder of the cache: below ``SMGRID_CACHE``, else the system's place for caches.

    Parameters
    ----------
    parts
        Names of nested folders; they are not created here.
    """
    return Path(os.environ.get(CACHE_VARIABLE) or pooch.os_cache("smgrid"), *parts)
