"""From a cube to the columns that a network was trained with."""
