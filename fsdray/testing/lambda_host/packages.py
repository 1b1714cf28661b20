"""Code packages: from a zip, given as bytes or as an object in S3, to a directory that runs.

The same bytes are unpacked once. Files keep the zip's times, so that bytecode in it stays valid.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import hashlib
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fsdray.testing.lambda_host.faults import invalid
from fsdray.testing.lambda_host.functions import Code
from fsdray.testing.lambda_host.limits import UNZIPPED


def code_of(request: Mapping[str, Any], directory: Path, endpoint_url: str | None) -> Code:
    """The code that a create or update request names; it blocks.

    Raises
    ------
    ApiFault : there is none, it cannot be fetched, or it is no package that Lambda would take.
    """
    if "ZipFile" in request:
        try:
            data = base64.b64decode(request["ZipFile"], validate=True)
        except binascii.Error as error:
            raise invalid("ZipFile is not base64") from error
    elif "S3Bucket" in request and "S3Key" in request:
        data = _fetch(request, endpoint_url)
    elif "ImageUri" in request:
        raise invalid("ImageUri: the local Lambda host runs zip packages only")
    else:
        raise invalid("Please provide a source for function code.")
    return _unpack(data, directory)


def _unpack(data: bytes, directory: Path) -> Code:
    digest = hashlib.sha256(data)
    path = directory / "code" / digest.hexdigest()[:32]
    code = Code(path, base64.b64encode(digest.digest()).decode("ascii"), len(data))
    if path.exists():
        return code
    path.parent.mkdir(exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=".", dir=path.parent))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as package:
            _extract(package, making)
        making.rename(path)
    except (zipfile.BadZipFile, EOFError) as error:
        raise invalid(
            "Could not unzip uploaded file. Please check your file, then try to upload again."
        ) from error
    except OSError:
        if not path.exists():  # unpacked by another request meanwhile
            raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return code


def _extract(package: zipfile.ZipFile, directory: Path) -> None:
    members = package.infolist()
    if sum(member.file_size for member in members) > UNZIPPED:
        raise invalid(f"Unzipped size must be smaller than {UNZIPPED} bytes")
    for member in members:
        where = package.extract(member, directory)
        if mode := (member.external_attr >> 16) & 0o777:
            os.chmod(where, mode)
        changed = calendar.timegm((*member.date_time, 0, 0, 0))
        os.utime(where, (changed, changed))


def _fetch(request: Mapping[str, Any], endpoint_url: str | None) -> bytes:
    if endpoint_url is None:
        raise invalid("S3Bucket: start the local Lambda host with the endpoint_url of an S3")
    # Slow to import, and most hosts never need them.
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    s3 = boto3.client(
        "s3",
        region_name=os.environ.get("AWS_REGION", "us-east-1"),
        endpoint_url=endpoint_url,
        # Of the environment or made up: an emulator asks for some, and must get no one's real ones.
        aws_access_key_id=os.environ.get("AWS_ACCESS_KEY_ID", "local"),
        aws_secret_access_key=os.environ.get("AWS_SECRET_ACCESS_KEY", "local"),
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 2}),
    )
    named = {"Bucket": request["S3Bucket"], "Key": request["S3Key"]}
    if "S3ObjectVersion" in request:
        named["VersionId"] = request["S3ObjectVersion"]
    try:
        return bytes(s3.get_object(**named)["Body"].read())
    except ClientError as error:
        said = error.response["Error"]
        raise invalid(
            f"Error occurred while GetObject. S3 Error Code: {said.get('Code')}. "
            f"S3 Error Message: {said.get('Message')}"
        ) from error
    except BotoCoreError as error:
        raise invalid(f"Error occurred while GetObject. {error}") from error
