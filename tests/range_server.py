"""An HTTP server on loopback that fails on demand: files by ranges, SAS tokens, or another server.

It runs as a process of its own: GDAL holds Python's lock while it opens a URL, so a server in a
thread of the tests would never answer. ``python range_server.py FOLDER`` (or the URL of a server to
stand in front of) prints its port. `tests.services` starts it and speaks to it.

``/_state?NAME=VALUE&...`` sets what follows and empties the log; ``/_log`` lists the paths that
were asked for, ``/_requests`` what was asked for in full.

fail, fault, match, skip
    After the first `skip`, the next `fail` requests whose path holds `match` meet the `fault`:
    ``status`` (answer `status`, with ``Retry-After: retry_after`` if that is set), ``reset`` (the
    connection), ``stall`` (half of the answer, then nothing for `seconds`), ``hang`` (nothing for
    `seconds`), ``truncate`` (half of what was promised), ``short`` (half, promised as half) or
    ``corrupt`` (what lies behind the first kilobyte is garbage). Those about the content do not
    meet ``HEAD``.
block
    429 with ``Retry-After`` until that many seconds after the first request.
The file ``index.json`` of the folder is what ``/`` gives.

secret, tokens, life
    Files need ``sig=secret``. ``tokens=expire``: they need ``sig=secret`` and a moment ``se=`` that
    is not over. ``/sas/token/ACCOUNT/CONTAINER`` gives such tokens, for `life` seconds.
bearer
    Files need the header ``Authorization: Bearer <bearer>``.
redirect
    Files are to be found below this URL instead.
"""

import json
import socket
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

START = {
    "fail": "0",
    "fault": "status",
    "match": "",
    "skip": "0",
    "status": "503",
    "retry_after": "",
    "seconds": "60",
    "block": "",
    "secret": "",
    "tokens": "",
    "life": "3600",
    "bearer": "",
    "redirect": "",
}
STATE = dict(START)
LOG = []
LOCK = threading.Lock()
HEADERS = ("Range", "Authorization")
ABOUT_CONTENT = ("stall", "truncate", "short", "corrupt")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream = ""
    folder = Path()

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.respond()

    def do_GET(self):
        self.body = None
        self.respond()

    def respond(self):
        url = urlsplit(self.path)
        query = {
            key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()
        }
        if url.path == "/_state":
            with LOCK:
                STATE.update({**START, **query} if "fresh" in query else query)
                LOG.clear()
            return self.answer(200, b"")
        if url.path == "/_log":
            return self.answer(200, json.dumps([one["path"] for one in LOG]).encode())
        if url.path == "/_requests":
            return self.answer(200, json.dumps(LOG).encode())
        stated = {key: self.headers[key] for key in HEADERS if self.headers[key]}
        with LOCK:
            moment = {"path": self.path, "method": self.command, "time": time.time()}
            LOG.append({**moment, "headers": stated, "body": (self.body or b"").decode()})
            fault = self.take_fault(url.path)
        if fault == "blocked":
            return self.answer(429, b"", {"Retry-After": STATE["block"]})
        if fault == "status":
            wait = {"Retry-After": STATE["retry_after"]} if STATE["retry_after"] else {}
            return self.answer(int(STATE["status"]), b"", wait)
        if fault == "reset":
            return self.reset()
        if fault == "hang":
            time.sleep(float(STATE["seconds"]))
            return self.reset()
        self.fault = fault
        return self.serve(url.path, query)

    def take_fault(self, path):
        if STATE["block"] and time.time() < LOG[0]["time"] + float(STATE["block"]):
            return "blocked"
        if STATE["match"] not in path or int(STATE["fail"]) <= 0:
            return ""
        if self.command == "HEAD" and STATE["fault"] in ABOUT_CONTENT:
            return ""
        if int(STATE["skip"]) > 0:
            STATE["skip"] = str(int(STATE["skip"]) - 1)
            return ""
        STATE["fail"] = str(int(STATE["fail"]) - 1)
        return STATE["fault"]

    def serve(self, path, query):
        if path.startswith("/sas/token/"):
            return self.give_token()
        if self.upstream:
            return self.forward()
        if STATE["redirect"]:
            return self.answer(302, b"", {"Location": STATE["redirect"] + path})
        if STATE["bearer"] and self.headers["Authorization"] != f"Bearer {STATE['bearer']}":
            return self.answer(401, b"")
        if STATE["secret"] and query.get("sig", "") != STATE["secret"]:
            return self.answer(403, b"")
        if STATE["tokens"] and self.is_over(query.get("se", "")):
            return self.answer(403, b"")
        file = self.folder / (path.lstrip("/") or "index.json")
        return self.answer_range(file.read_bytes()) if file.is_file() else self.answer(404, b"")

    def is_over(self, moment):
        return not moment or datetime.fromisoformat(moment) < datetime.now(UTC)

    def give_token(self):
        end = datetime.now(UTC) + timedelta(seconds=float(STATE["life"]))
        stamp = end.isoformat().replace("+00:00", "Z")
        token = f"st=2020-01-01T00:00:00Z&se={stamp}&sp=rl&sig={STATE['secret']}"
        return self.answer(200, json.dumps({"msft:expiry": stamp, "token": token}).encode())

    def forward(self):
        """Pass a request on; what comes back names this server where it named the other one."""
        here = f"http://127.0.0.1:{self.server.server_port}"
        path = urlsplit(self.path)._replace(scheme="", netloc="").geturl()
        body = (self.body or b"").replace(here.encode(), self.upstream.encode()) or None
        kept = {k: v for k, v in self.headers.items() if k in ("Accept", "Content-Type")}
        asked = urllib.request.Request(self.upstream + path, body, kept, method=self.command)
        try:
            with urllib.request.urlopen(asked, timeout=30) as found:
                status, content, kind = found.status, found.read(), found.headers["Content-Type"]
        except urllib.error.HTTPError as found:
            status, content, kind = found.code, found.read(), found.headers["Content-Type"]
        content = content.replace(self.upstream.encode(), here.encode())
        return self.answer(status, content, {"Content-Type": kind or "text/plain"})

    def answer_range(self, content):
        if self.fault == "corrupt":
            garbage = bytes(byte ^ 0x5A for byte in content[1024:])
            content = content[:1024] + garbage
        asked = self.headers.get("Range")
        if not asked:
            return self.answer(200, content)
        first, last = asked.removeprefix("bytes=").split("-")
        start, stop = int(first), min(int(last or len(content) - 1), len(content) - 1) + 1
        if start >= len(content):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        where = f"bytes {start}-{stop - 1}/{len(content)}"
        return self.answer(206, content[start:stop], {"Content-Range": where})

    def answer(self, status, body, headers=None):
        fault = getattr(self, "fault", "")
        sent = body[: len(body) // 2] if fault in ("stall", "truncate", "short") else body
        promised = len(sent) if fault == "short" else len(body)
        self.send_response(status)
        for key, value in {**(headers or {}), "Accept-Ranges": "bytes"}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)
            self.wfile.flush()
        if fault == "stall":
            time.sleep(float(STATE["seconds"]))
        if fault in ("stall", "truncate"):
            self.close_connection = True
        self.fault = ""

    def reset(self):
        """End the connection without an answer: the peer sees "connection reset"."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.close_connection = True

    def handle(self):
        # A peer that gives up in the middle is what half of the faults are about.
        try:
            super().handle()
        except (OSError, ValueError):
            self.close_connection = True

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def shutdown_request(self, request):
        try:
            super().shutdown_request(request)
        except OSError:
            request.close()


if __name__ == "__main__":
    if sys.argv[1].startswith("http"):
        Handler.upstream = sys.argv[1]
    else:
        Handler.folder = Path(sys.argv[1])
    server = Server(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
