"""Servers of gs:// and s3:// on 127.0.0.1, and what may go wrong before them.

Each comes from an environment of its own, as its packages and those of gcsfs
and s3fs do not go together:

    python -m venv gs && gs/bin/pip install gcp-storage-emulator
    python -m venv s3 && s3/bin/pip install 'moto[server,s3]'
    export GCS_EMULATOR=$PWD/gs/bin/gcp-storage-emulator
    export MOTO_SERVER=$PWD/s3/bin/moto_server
    pip install 'flax_resnet[gcs,s3]'
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import http.client
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import os
import socket
import subprocess
import sys
import threading
import time
from types import MappingProxyType
import urllib.parse

import pytest

BUCKET = "bucket"
# Longer than any test takes: a server never stays.
_SECONDS = 1800
Answer = tuple[int, bytes]


def free_port() -> int:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


def _command(scheme: str, port: int) -> list[str]:
  variable = {"gs": "GCS_EMULATOR", "s3": "MOTO_SERVER"}[scheme]
  if variable not in os.environ:
    pytest.skip(f"{variable} is not set: see tests/servers.py")
  pytest.importorskip({"gs": "gcsfs", "s3": "s3fs"}[scheme])
  program = os.environ[variable]
  if scheme == "s3":
    return [program, "-H", "127.0.0.1", "-p", str(port)]
  address = ("--host", "127.0.0.1", "--port", str(port))
  return [program, "start", *address, "--default-bucket", BUCKET, "-M"]


@contextlib.contextmanager
def serving(scheme: str) -> Iterator[int]:
  """Runs the server of a scheme, with an empty bucket; yields its port."""
  port = free_port()
  server = subprocess.Popen(
    ["timeout", str(_SECONDS), *_command(scheme, port)],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    end = time.monotonic() + 60
    while time.monotonic() < end:
      with contextlib.suppress(OSError):
        request = {
          "gs": ("GET", f"/storage/v1/b/{BUCKET}"),
          "s3": ("PUT", f"/{BUCKET}"),
        }
        if _ask(port, *request[scheme])[0] == 200:
          break
      time.sleep(0.2)
    else:
      pytest.fail(f"the server of {scheme}:// does not start")
    yield port
  finally:
    server.terminate()
    server.wait()


def environ(scheme: str, port: int) -> dict[str, str]:
  """Returns the variables by which clients find a server."""
  url = f"http://127.0.0.1:{port}"
  if scheme == "gs":
    return {"STORAGE_EMULATOR_HOST": url}
  return {
    "AWS_ENDPOINT_URL": url,
    "AWS_ACCESS_KEY_ID": "AKIDFORTESTS",
    "AWS_SECRET_ACCESS_KEY": "secret-for-tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
  }


def _ask(
  port: int,
  method: str,
  path: str,
  body: bytes | None = None,
  headers: Mapping[str, str] = MappingProxyType({}),
) -> tuple[int, list[tuple[str, str]], bytes]:
  """Returns status, headers and body of the answer to a request."""
  connection = http.client.HTTPConnection("127.0.0.1", port)
  with contextlib.closing(connection):
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response.status, response.getheaders(), response.read()


class _Server(ThreadingHTTPServer):
  request_queue_size = 128  # Of 5, a sixth client would wait for a second.

  def handle_error(self, request, client_address):
    """Says nothing of a client that was killed."""


class Proxy:
  """Passes requests on to a server, or answers them itself.

  Attributes:
    port: port at which it listens.
    answer: function that is called with the method, the path with its query and
      the body; it returns status and body, or None to pass the request on.
    passed: function that is called with these and the status of the answer of
      a request that was passed on.
    requests: the "METHOD path" that came.

  Args:
    port: port of the server.
    one_at_a_time: whether a request waits until the server has answered the one
      before. The emulator of gs:// answers so, and lets five wait: the system
      asks for a sixth again after 1 s, 3 s and 7 s. In that time a lease of a
      test runs out, and what a killed run was writing is written after all.
  """

  def __init__(self, port: int, one_at_a_time: bool = False):
    self.answer: Callable[[str, str, bytes], Answer | None] = lambda *_: None
    self.passed: Callable[[str, str, bytes, int], None] = lambda *_: None
    self.requests: list[str] = []
    asking = threading.Lock() if one_at_a_time else contextlib.nullcontext()
    outer = self

    class Handler(BaseHTTPRequestHandler):
      protocol_version = "HTTP/1.1"

      def _handle(self):
        outer.requests.append(f"{self.command} {self.path}")
        body = self._body()
        found = outer.answer(self.command, self.path, body)
        if found is None:
          headers = {
            k: v
            for k, v in self.headers.items()
            if k.lower() not in ("transfer-encoding", "expect")
          }
          headers["Content-Length"] = str(len(body))
          request = (self.command, self.path, body)
          status = 0  # Of a server that has gone.
          try:
            with asking:
              status, answered, data = _ask(port, *request, headers)
          except OSError:
            self.close_connection = True
            return
          finally:
            outer.passed(*request, status)
        else:
          (status, data), answered = found, []
        self.send_response_only(status)
        for key, value in answered:
          if key.lower() not in ("transfer-encoding", "content-length"):
            self.send_header(key, value)
        if self.command == "HEAD" and found is None:
          length = dict(answered).get("Content-Length", "0")
          self.send_header("Content-Length", length)
          self.end_headers()
          return
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

      def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
          return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
          body += self.rfile.read(size)
          self.rfile.readline()
        self.rfile.readline()
        return body

      do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815

      def log_message(self, format, *args):
        pass

    self._server = _Server(("127.0.0.1", 0), Handler)
    self._server.daemon_threads = True
    self.port = self._server.server_address[1]
    threading.Thread(target=self._server.serve_forever, daemon=True).start()

  def close(self) -> None:
    self._server.shutdown()
    self._server.server_close()


def honor_generations(proxy: Proxy, port: int) -> None:
  """Adds to the emulator of gs:// that an object is created once.

  Google's answer to ifGenerationMatch=0, which the emulator does not know.
  """
  lock = threading.Lock()
  being_made: set[str] = set()

  def to_be_made(method: str, path: str, body: bytes) -> str | None:
    url = urllib.parse.urlsplit(path)
    query = urllib.parse.parse_qs(url.query)
    if method != "POST" or query.get("ifGenerationMatch") != ["0"]:
      return None
    return json.loads(body.split(b"\n\n")[1].partition(b"\n--")[0])["name"]

  def answer(method, path, body):
    name = to_be_made(method, path, body)
    if name is None:
      return None
    with lock:
      quoted = urllib.parse.quote(name, safe="")
      status, _, _ = _ask(port, "GET", f"/storage/v1/b/{BUCKET}/o/{quoted}")
      if name in being_made or status == 200:
        return 412, b'{"error": {"code": 412, "message": "conditionNotMet"}}'
      being_made.add(name)
    return None

  def passed(method, path, body, status):
    # It is there now; or it is not, and whoever asks again may make it.
    name = to_be_made(method, path, body)
    if name is not None:
      with lock:
        being_made.discard(name)

  proxy.answer, proxy.passed = answer, passed


def python(code: str, *arguments: object, **variables: str):
  """Starts Python with code of this repository; returns the process."""
  root = os.path.dirname(os.path.dirname(__file__))
  paths = [root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
  return subprocess.Popen(
    [sys.executable, "-c", code, *map(str, arguments)],
    cwd=root,
    env={
      **os.environ,
      "PYTHONPATH": os.pathsep.join(filter(None, paths)),
      "XLA_FLAGS": "",
      **variables,
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
