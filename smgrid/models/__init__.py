"""The networks, the ensemble as a value and its bundle on disk."""
