"""Fixtures of the cluster tests: a server of the S3 protocol."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from subprocess import Popen

import pytest

# A store checks a condition and writes in one step; moto lets other writes in between, so here
# writes to a key wait for each other. In the bucket "careless" conditions are ignored, as some
# servers of the protocol do.
SERVER = """
import collections, logging, sys, threading, boto3
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer
locks, put_object = collections.defaultdict(threading.Lock), S3Response.put_object
def put_one_by_one(response):
    if response.bucket_name == "careless":
        headers = response.headers.items()
        kept = {name: value for name, value in headers if not name.lower().startswith("if-")}
        response.headers = kept
    with locks[response.bucket_name, response.parse_key_name()]:
        return put_object(response)
S3Response.put_object = put_one_by_one
logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request would fill the pipe
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
address = "http://%s:%d" % server.get_host_and_port()
for bucket in ("bucket", "careless"):
    boto3.client("s3", endpoint_url=address, region_name="us-east-1").create_bucket(Bucket=bucket)
print(address, flush=True)
sys.stdin.read()
"""
KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="session")
def s3_server() -> Callable[..., contextlib.AbstractContextManager[dict[str, str]]]:
    """Starts moto's server, with two empty buckets, by a function like Popen.

    Yields the environment variables for its clients.
    """
    for name in ("s3fs", "moto"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")

    @contextlib.contextmanager
    def serve(start: Callable[..., Popen[str]]) -> Iterator[dict[str, str]]:
        process = start(sys.executable, "-c", SERVER, **KEYS)
        try:
            yield {
                **KEYS,
                "AWS_ENDPOINT_URL": next(
                    line.strip() for line in process.stdout if line.startswith("http")
                ),
            }
        finally:
            process.kill()
            process.communicate()

    return serve
