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

pytestmark = pytest.mark.thorough("half a minute on a second emulator")

MOTO = "moto[s3]==5.2.5\nflask\nflask-cors"
BUCKET = "of-moto"
EXPRESS = "of-moto--use1-az4--x-s3"

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
def moto() -> Iterator[Clients]:
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
            # Moto has directory buckets, and not the sessions that AWS has for them.
            "AWS_S3_DISABLE_EXPRESS_SESSION_AUTH": "true",
        }.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        boto3.client("s3").create_bucket(
            Bucket=EXPRESS,
            CreateBucketConfiguration={
                "Location": {"Type": "AvailabilityZone", "Name": "use1-az4"},
                "Bucket": {"DataRedundancy": "SingleAvailabilityZone", "Type": "Directory"},
            },
        )
        clients = Clients(lambda name, amount: None)
        loop.run(clients.get("s3"))
        yield clients
        loop.run(clients.close())
        server.stdin.close()


@pytest.mark.parametrize("check", OBJECT_CHECKS, ids=lambda check: check.__name__)
def test_objects_keep_their_guarantees_on_moto_too(moto: Clients, check: Any) -> None:
    loop.run(check(AwsObjects(moto, BUCKET, "runs/moto/")))


def test_a_directory_bucket_is_listed_by_any_prefix(moto: Clients) -> None:
    async def program() -> None:
        objects = AwsObjects(moto, EXPRESS, "runs/moto/")
        asked: list[str] = []

        def note(params: dict[str, Any], **_: Any) -> None:
            asked.append(params["url_path"] + "?" + str(params["query_string"].get("prefix")))

        (await moto.get("s3")).meta.events.register("before-call.s3.ListObjectsV2", note)
        for key in ("a/b", "a/bc", "ab", "b"):
            await objects.put(key, b"")
        for prefix in ("", "a", "a/", "a/b", "ab", "c/"):
            expected = sorted(key for key in ("a/b", "a/bc", "ab", "b") if key.startswith(prefix))
            assert await objects.list(prefix) == expected
        assert all(each.endswith("/") for each in asked), "S3 Express lists directories only"
        await objects.delete(await objects.list(""))

    loop.run(program())
