"""Sources become one lazy cube; cubes and maps live in Zarr stores that can be resumed."""
