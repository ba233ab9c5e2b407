"""The command line: each command is one stage and runs alone on what the former left.

Exit codes: 0 done, 1 unexpected failure, 2 bad usage or configuration, 3 an input is missing or
wrong, 4 a store cannot be written or read, 5 the model and the cube do not fit.

A module per subject registers its commands on `app`; imports that take time stand in the commands.
"""

# Importing a module registers its commands, in the order in which --help shows them.
from smgrid.cli import building, looking, sharing
from smgrid.cli.application import app, main

__all__ = ["app", "building", "looking", "main", "sharing"]
