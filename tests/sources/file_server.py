"""A file server on loopback that answers ranges, wants a password and fails as it is told.

It runs as a process of its own. ``python file_server.py FOLDER`` prints its port.

``POST /_plan`` with ``{"faults": ["503", "429:2", "cut", ...], "password": "...", "redirect":
"...", "validator": "etag"}`` says what the next requests for files get, one fault each, who may
read, and what tells versions apart (``etag``, ``modified`` or ``none``); ``GET /_log`` lists what
was asked for.
"""

import base64
import json
import socket
import struct
import sys
import time
import zlib
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

FOLDER = Path(sys.argv[1])
FRESH = {"faults": [], "password": "", "redirect": "", "validator": "etag"}
PLAN = dict(FRESH)
LOG = []
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


def etag(content):
    return f'"{zlib.crc32(content)}"'


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        PLAN.update(FRESH | json.loads(body))
        LOG.clear()
        self.answer(200, b"")

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.path == "/_log":
            return self.answer(200, json.dumps(LOG).encode())
        asked, authorised = self.headers.get("Range"), self.headers.get("Authorization")
        conditions = [self.headers.get(f"If-{name}") for name in ("None-Match", "Modified-Since")]
        LOG.append(
            {
                "path": self.path,
                "range": asked,
                "authorization": authorised,
                "conditions": conditions,
            }
        )
        if PLAN["redirect"]:
            return self.answer(302, b"", {"Location": PLAN["redirect"] + self.path})
        wanted = base64.b64encode(PLAN["password"].encode()).decode()
        if PLAN["password"] and authorised != f"Basic {wanted}":
            return self.answer(401, b"")
        path = FOLDER / urlsplit(self.path).path.lstrip("/")
        fault = PLAN["faults"].pop(0) if PLAN["faults"] else ""
        if fault and not fault[0].isdigit():
            return getattr(self, fault)(path.read_bytes())
        if fault:
            status, _, wait = fault.partition(":")
            return self.answer(int(status), b"", {"Retry-After": wait} if wait else {})
        if not path.is_file():
            return self.answer(404, b"")
        content = path.read_bytes()
        if any(conditions) and conditions == self.version(content, path):
            return self.answer(304, b"")
        same = self.headers.get("If-Range", etag(content)) == etag(content)
        return self.piece(content, asked) if asked and same else self.whole(content)

    def version(self, content, path):
        """Return the ETag and the time of change that are stated of a file."""
        modified = formatdate(path.stat().st_mtime, usegmt=True)
        kind = PLAN["validator"]
        return [etag(content) * (kind == "etag") or None, modified * (kind == "modified") or None]

    def whole(self, content):
        self.answer(200, content)

    def piece(self, content, asked):
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else len(content) - int(last)
        stop = min(int(last or len(content) - 1), len(content) - 1) + 1 if first else len(content)
        where = f"bytes {start}-{stop - 1}/{len(content)}"
        self.answer(206, content[start:stop], {"Content-Range": where, "ETag": etag(content)})

    def another_piece(self, content):
        """Answer a request for a range with the whole, called the range from the start."""
        self.piece(content, "bytes=0-")

    def half_a_piece(self, content):
        """Answer a request for the rest with half of it, and say so."""
        start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
        self.piece(content, f"bytes={start}-{(start + len(content)) // 2}")

    def changed(self, content):
        """Answer with half of an older file of the same length."""
        self.short(content[::-1])

    def short(self, content):
        self.answer(200, content, length=len(content) // 2)
        self.close_connection = True

    def cut(self, content):
        self.short(content)
        self.wfile.flush()
        time.sleep(0.05)  # let the first half arrive
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def stall(self, content):
        time.sleep(1.0)
        self.close_connection = True

    def wrong(self, content):
        self.answer(200, bytes(len(content)))

    def page(self, content):
        self.answer(200, PAGE, {"Content-Type": "text/html; charset=utf-8"})

    def page_in_disguise(self, content):
        self.answer(200, PAGE)

    def answer(self, status, body, headers=None, *, length=None):
        self.send_response(status)
        path = FOLDER / urlsplit(self.path).path.lstrip("/")
        tag, modified = self.version(body, path) if path.is_file() else (None, None)
        kind = {"ETag": tag, "Last-Modified": modified} if status == 200 else {}
        kind = {key: value for key, value in kind.items() if value}
        for key, value in {**kind, **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:length])

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
