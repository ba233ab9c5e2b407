"""A tile server of titiler.xarray on loopback, in a process of its own.

``python tile_server.py`` prints the port that it listens on.
"""

import socket
import sys

import uvicorn
from fastapi import FastAPI
from titiler.xarray.factory import TilerFactory


def main() -> None:
    """Serve until the process is ended."""
    app = FastAPI()
    app.include_router(TilerFactory().router)
    listening = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"{listening.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listening])


if __name__ == "__main__":
    main()
