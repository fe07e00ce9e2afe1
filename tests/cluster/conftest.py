"""What tests of clusters share: a server of the S3 protocol."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from subprocess import Popen

import pytest

SERVER = """
import os, sys, boto3
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
address = "http://%s:%d" % server.get_host_and_port()
boto3.client("s3", endpoint_url=address, region_name="us-east-1").create_bucket(Bucket="bucket")
print(address, flush=True)
sys.stdin.read()
"""
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def s3_server() -> Callable[..., contextlib.AbstractContextManager[dict[str, str]]]:
    """Starts moto's server, with an empty bucket "bucket", by a function like Popen; gives the variables that lead clients to it."""
    for name in ("s3fs", "moto"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")

    @contextlib.contextmanager
    def serve(start: Callable[..., Popen[str]]) -> Iterator[dict[str, str]]:
        process = start(sys.executable, "-c", SERVER, **KEYS)
        try:
            yield {**KEYS, "AWS_ENDPOINT_URL": next(line.strip() for line in process.stdout if line.startswith("http"))}
        finally:
            process.kill()
            process.communicate()

    return serve
