"""An S3 endpoint on loopback, which counts what it is asked and fails on demand.

moto runs in a process of its own: ``python s3_server.py`` prints its port. `S3Server` starts that
process and is what tests use. ``POST /_state`` with JSON sets what goes wrong from now on:

- ``faults``: one per data request, in order: an HTTP status (503 is S3's SlowDown), ``reset``
  (nothing is answered), ``lost`` (done, but the answer is lost), ``cut`` (half of the body), or a
  number of seconds to wait as ``{"stall": 2}``;
- ``lose``: part of a path; the answer to the first PUT there is lost, "" for none;
- ``key``: the only access key id that is let in, "" for any.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

KEY, SECRET = "AKIDTESTKEY", "the-secret-of-the-tests"


class S3Server:
    """The running server, seen from the tests."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **self.environment("")},
        )
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    @staticmethod
    def environment(url):
        """What a client finds in its environment."""
        return {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def plan(self, *faults, key="", lose=""):
        """Let the next requests fail like this, and forget what was asked so far."""
        self._ask("_state", json.dumps({"faults": faults, "key": key, "lose": lose}).encode())

    def log(self):
        """Return method, path and query of every request since `plan`."""
        return [tuple(entry) for entry in json.loads(self._ask("_log"))]

    def client(self):
        """Return a client of another library, to look at the objects independently."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )

    def make_bucket(self, name, *, acl="private"):
        self.client().create_bucket(Bucket=name, ACL=acl)
        return name

    def files(self, bucket, prefix):
        """Return every object below a prefix by its key there."""
        client = self.client()
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return {
            key.removeprefix(f"{prefix}/"): client.get_object(Bucket=bucket, Key=key)["Body"].read()
            for key in keys
        }

    def stop(self):
        self.process.terminate()
        self.process.wait(10)
        self.process.stdout.close()

    def _ask(self, path, body=None):
        with urllib.request.urlopen(f"{self.url}/{path}", body, timeout=30) as answer:
            return answer.read()


class Faults:
    """A layer around moto's application that logs, and fails as it was told to."""

    def __init__(self, application):
        self.application = application
        self.faults, self.key, self.lose, self.log = [], "", "", []

    def __call__(self, environ, start_response):
        path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
        if path == "/_state":
            state = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            self.faults, self.key, self.lose = state["faults"], state["key"], state["lose"]
            self.log = []
            return answer(start_response, 200, b"")
        if path == "/_log":
            return answer(start_response, 200, json.dumps(self.log).encode())
        self.log.append((environ["REQUEST_METHOD"], path, query))
        credential = f"Credential={self.key}/"
        if self.key and credential not in environ.get("HTTP_AUTHORIZATION", ""):
            return answer(start_response, 403, error_body("InvalidAccessKeyId"))
        fault = self.faults.pop(0) if self.faults else None
        if self.lose and self.lose in path and environ["REQUEST_METHOD"] == "PUT":
            fault, self.lose = "lost", ""
        if isinstance(fault, int):
            return answer(
                start_response, fault, error_body("SlowDown" if fault == 503 else "Other")
            )
        if isinstance(fault, dict):
            time.sleep(fault["stall"])
        if fault == "reset":
            return reset(environ)
        if fault == "lost":
            b"".join(self.application(environ, lambda *_: None))
            return reset(environ)
        body = self.application(environ, start_response)
        if fault == "cut":
            whole = b"".join(body)
            return [whole[: len(whole) // 2]]
        return body


def answer(start_response, status, body):
    start_response(f"{status} Planned", [("Content-Length", str(len(body)))])
    return [body]


def error_body(code):
    return f"<Error><Code>{code}</Code><Message>planned</Message></Error>".encode()


def reset(environ):
    """Close the connection without a word."""
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


def serve():
    from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    application = Faults(DomainDispatcherApplication(create_backend_app))
    server = make_server(
        "127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler
    )
    os.environ["MOTO_PORT"] = str(server.server_port)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).parent]
    serve()
