"""A file server on loopback that answers ranges, wants a signature and fails on demand.

It runs as a process of its own: GDAL holds Python's lock while it opens a URL, so a server in a
thread of the tests would never answer. ``python range_server.py FOLDER`` prints its port.

``/_state?fail=2&status=503&secret=abc`` makes the next two requests fail and the others ask for
``sig=abc``; ``/_log`` lists what was asked for.
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

FOLDER = Path(sys.argv[1])
STATE = {"fail": "0", "status": "503", "secret": ""}
LOG = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if url.path == "/_state":
            STATE.update(query)
            LOG.clear()
            return self.answer(200, b"")
        if url.path == "/_log":
            return self.answer(200, json.dumps(LOG).encode())
        LOG.append(self.path)
        if int(STATE["fail"]) > 0:
            STATE["fail"] = str(int(STATE["fail"]) - 1)
            return self.answer(int(STATE["status"]), b"")
        if query.get("sig", "") != STATE["secret"]:
            return self.answer(403, b"")
        path = FOLDER / url.path.lstrip("/")
        if not path.is_file():
            return self.answer(404, b"")
        return self.answer_range(path.read_bytes())

    def answer_range(self, content):
        asked = self.headers.get("Range")
        if not asked:
            return self.answer(200, content)
        first, last = asked.removeprefix("bytes=").split("-")
        start, stop = int(first), min(int(last or len(content) - 1), len(content) - 1) + 1
        where = f"bytes {start}-{stop - 1}/{len(content)}"
        return self.answer(206, content[start:stop], {"Content-Range": where})

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for key, value in {**(headers or {}), "Accept-Ranges": "bytes"}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
