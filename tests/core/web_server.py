"""A web server on loopback that answers as it is told, rightly or wrongly, for tests."""

import contextlib
import hashlib
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from small_models import small_model

from dn_core.checkpoints import Checkpoint, save_checkpoint
from dn_core.models.index import content_name, index_bytes


def write_model(path, name, scale=1.0, config="residual"):
    """A small model file; each scale gives another content."""
    base = small_model(config).checkpoint
    weights = {
        key: value * (scale if key == "last.weight" else 1) for key, value in base.weights.items()
    }
    save_checkpoint(path, Checkpoint(base.config, weights, replace(base.card, name=name)))
    return path


def record_of(name, content, version=1, **changes):
    """A model's line in an index."""
    digest = hashlib.sha256(content).hexdigest()
    return {
        "name": name,
        "version": version,
        "file": content_name(name, digest),
        "sha256": digest,
        "bytes": len(content),
        **changes,
    }


class WebServer:
    """`answers`: bytes or a function of the request by path; `requests`: paths with headers."""

    def __init__(self, tls=None):
        self.answers = {}
        self.requests = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                owner.requests.append((self.path, dict(self.headers)))
                answer = owner.answers.get(self.path)
                self.close_connection = True
                with contextlib.suppress(OSError):  # the client may have heard enough
                    if answer is None:
                        self.send_error(404)
                    elif callable(answer):
                        answer(self)
                    else:
                        begin(self, len(answer))
                        self.wfile.write(answer)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.stopping = threading.Event()
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.address = f"http{'s' if tls else ''}://127.0.0.1:{self.server.server_port}/models"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def offer(self, sequence, *records):
        """Put an index up."""
        self.answers["/models/index.json"] = index_bytes(sequence, records)

    def serve(self, content, name="lab", version=1, sequence=1):
        """Offer one model; give its line in the index."""
        record = record_of(name, content, version)
        self.offer(sequence, record)
        self.answers[f"/models/{record['file']}"] = content
        return record

    def close(self):
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def begin(request, length=None, status=200, **headers):
    """The status line and headers of an answer."""
    request.send_response(status)
    if length is not None:
        request.send_header("Content-Length", str(length))
    request.send_header("Connection", "close")
    for key, value in headers.items():
        request.send_header(key.replace("_", "-"), value)
    request.end_headers()


def redirect(target, status=302):
    return lambda request: begin(request, 0, status, Location=target)


def status(code):
    return lambda request: request.send_error(code)


def slowly(content, piece, seconds, stopping, length=None):
    """Send `piece` bytes at a time, with pauses between them."""

    def answer(request):
        begin(request, length)
        for start in range(0, len(content), piece):
            request.wfile.write(content[start : start + piece])
            request.wfile.flush()
            if stopping.wait(seconds):
                return

    return answer


def endless(stopping):
    def answer(request):
        begin(request)
        while not stopping.is_set():
            request.wfile.write(b"0" * 65536)
            time.sleep(0.001)

    return answer
