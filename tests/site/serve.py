"""A folder on this machine's own address, compressed as every web host does it."""

import gzip
import mimetypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMPRESSED = {".html", ".css", ".js", ".svg", ".json", ".txt", ".xml"}


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder while the context lasts; its address ends without a slash."""

    @cache
    def read(path: Path) -> bytes:
        content = path.read_bytes()
        return gzip.compress(content, 6) if path.suffix in COMPRESSED else content

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path = folder / unquote(urlsplit(self.path).path).lstrip("/")
            path, status = (path / "index.html" if path.is_dir() else path), 200
            if not path.is_file():
                path, status = folder / "404.html", 404
            content = read(path) if path.is_file() else b"not found"
            kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            self.send_response(status)
            self.send_header(
                "Content-Type", kind + ("; charset=utf-8" if kind.startswith("text/") else "")
            )
            if path.suffix in COMPRESSED and path.is_file():
                self.send_header("Content-Encoding", "gzip")
            self.send_header("Cache-Control", "max-age=600")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_):
            """Say nothing of a browser that hangs up."""

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
