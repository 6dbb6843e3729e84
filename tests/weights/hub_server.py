"""A hub on 127.0.0.1, for tests: what huggingface_hub asks of one."""

from collections.abc import Iterator, Mapping
import contextlib
import hashlib
from http import server
import threading

from tests.weights.hub_cache import COMMIT


@contextlib.contextmanager
def serve(files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
  """Serves repositories until the block ends.

  Args:
    files: contents by "owner/repository/file".

  Yields:
    The URL of the hub, for HF_ENDPOINT, and the paths that are asked for.
  """
  asked: list[str] = []
  repositories = {name.rpartition("/")[0] for name in files}

  class Handler(server.BaseHTTPRequestHandler):
    def do_HEAD(self):
      asked.append(self.path)
      # "/owner/repository/resolve/main/file"
      repository, _, rest = self.path[1:].partition("/resolve/")
      name = f"{repository}/{rest.partition('/')[2]}"
      if name not in files:
        known = repository in repositories
        code = "EntryNotFound" if known else "RepoNotFound"
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None
      content = files[name]
      self.send_response(200)
      self.send_header("X-Repo-Commit", COMMIT)
      self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
      self.send_header("Content-Length", str(len(content)))
      self.end_headers()
      return content

    def do_GET(self):
      if content := self.do_HEAD():
        self.wfile.write(content)

    def log_message(self, format, *args):
      pass

  hub = server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=hub.serve_forever, daemon=True)
  thread.start()
  try:
    yield f"http://127.0.0.1:{hub.server_port}", asked
  finally:
    hub.shutdown()
    hub.server_close()
    thread.join()
