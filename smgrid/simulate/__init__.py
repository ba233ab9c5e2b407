"""An observing-system simulation: a world with known soil moisture in the providers' formats."""

from smgrid.simulate.weather import Climate, climate_at
from smgrid.simulate.world import World, open_world, simulate_world

__all__ = ["Climate", "World", "climate_at", "open_world", "simulate_world"]
