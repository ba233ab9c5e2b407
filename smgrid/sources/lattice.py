"""How the lattice of a provider's pixels covers a target grid."""

from odc.geo.geobox import GeoBox

from smgrid.sources.window import lattice_window

_ALIGNED = 1e-3


def fine_grid(lattice: GeoBox, grid: GeoBox, chunks: int) -> tuple[GeoBox, int]:
    """Return the pixels of a lattice that cover `grid`, and how many of them edge one tile.

    Where whole pixels fill the cells of `grid` the two boxes have the same edges, so that one tile
    of pixels becomes one tile of cells.
    """
    factor = _nesting(lattice, grid)
    if factor:
        shape = (grid.shape.y * factor, grid.shape.x * factor)
        return grid.zoom_to(shape), chunks * factor
    fine = lattice_window(lattice, grid, padding=1)
    return fine, max(1, round(chunks * fine.shape.x / grid.shape.x))


def _nesting(lattice: GeoBox, grid: GeoBox) -> int:
    """Return how many pixels of a lattice edge one cell of `grid`, 0 if not a whole number."""
    if lattice.crs != grid.crs:
        return 0
    pixel, cell = lattice.affine, grid.affine
    ratio = (cell.a / pixel.a, cell.e / pixel.e)
    offset = ((cell.c - pixel.c) / pixel.a, (cell.f - pixel.f) / pixel.e)
    drift = max(abs(part - round(part)) for part in ratio + offset)
    factor = round(ratio[0])
    return factor if factor == round(ratio[1]) and drift < _ALIGNED else 0
