"""A tiny data set in MNIST's files, and a web server on the loopback that hands out files."""

import gzip
import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np

from batchlab.workloads.source import Source

Fetched = list[str]


def idx(array: np.ndarray) -> bytes:
    """The IDX file of an array of bytes, written here by the format's description."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def files() -> dict[str, bytes]:
    """MNIST's four files with 6 training and 4 test samples of 2 by 3 pixels."""
    draw = np.random.default_rng(0)
    return {
        "train-images-idx3-ubyte": idx(draw.integers(0, 256, (6, 2, 3))),
        "train-labels-idx1-ubyte": idx(np.array([5, 0, 4, 1, 9, 2])),
        "t10k-images-idx3-ubyte": idx(draw.integers(0, 256, (4, 2, 3))),
        "t10k-labels-idx1-ubyte": idx(np.array([7, 2, 1, 0])),
    }


def source(contents: Mapping[str, bytes], mirrors: tuple[str, ...] = ()) -> Source:
    """The source whose published files are these."""
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    return Source(name="mnist", mirrors=mirrors, sha256=hashes)


def write(
    folder: Path,
    contents: Mapping[str, bytes],
    pack: Callable[[bytes], bytes] = gzip.compress,
    suffix: str = ".gz",
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}{suffix}").write_bytes(pack(content))


@contextmanager
def served(answers: Mapping[str, bytes]) -> Iterator[tuple[str, Fetched]]:
    """A server of these paths (all else is 404): its address, and the paths asked of it so far."""
    asked: Fetched = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            content = answers.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()
