"""S3 as another emulator understands it: the same guarantees, on moto."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from fsdray import loop
from fsdray.backends.aws.clients import Clients
from fsdray.backends.aws.objects import AwsObjects
from fsdray.settings import resolve
from fsdray.testing import OBJECT_CHECKS
from fsdray.testing.emulator.packages import installed

MOTO = "moto[s3]==5.2.5\nflask\nflask-cors"
BUCKET = "of-moto"

# It says where it listens, and ends when its stdin does.
SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
import json, logging, threading
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
logging.getLogger("werkzeug").setLevel(logging.ERROR)
application = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, application, threaded=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(json.dumps(server.port), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def moto() -> Iterator[AwsObjects]:
    place = installed(resolve({}).cache_directory, MOTO)
    with (
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", SERVER, str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        assert server.stdin is not None
        assert server.stdout is not None
        url = f"http://127.0.0.1:{json.loads(server.stdout.readline())}"
        for name, value in {
            "AWS_ENDPOINT_URL_S3": url,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        clients = Clients(lambda name, amount: None)
        loop.run(clients.get("s3"))
        yield AwsObjects(clients, BUCKET, "runs/moto/")
        loop.run(clients.close())
        server.stdin.close()


@pytest.mark.parametrize("check", OBJECT_CHECKS, ids=lambda check: check.__name__)
def test_objects_keep_their_guarantees_on_moto_too(moto: AwsObjects, check: Any) -> None:
    loop.run(check(moto))
