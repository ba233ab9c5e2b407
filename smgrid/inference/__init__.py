"""From a cube and an ensemble to soil moisture with its spread."""
