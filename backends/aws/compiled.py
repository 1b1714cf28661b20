"""Kernels that numba compiled, kept in the stack's bucket: later environments load them.

numba keeps machine code in files, and a new environment has none. Who compiles first for a kind of
processor puts its files there, once; who fetches the compiler (`late`) looks for them.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from fsdray.backends.aws import border
from fsdray.errors import FsdrayError

_OURS = "inference_*/kernels.*"  # in numba's cache: what users compile is not for others
_SOURCE = "fsdray/inference/kernels.py"
_FACTS = ("model name", "flags", "CPU implementer", "CPU part", "Features")


class Compiled:
    """The kernels of this environment.

    Parameters
    ----------
    bucket, region : where they are kept.
    """

    def __init__(self, bucket: str, region: str) -> None:
        folder = os.path.join(tempfile.gettempdir(), "fsdray-numba")
        # The code's directory is read-only in Lambda, and numba would find a place that we do not.
        self._folder = Path(os.environ.setdefault("NUMBA_CACHE_DIR", folder))
        self._bucket = bucket
        self._region = region
        self._key: str | None = None  # where they are to be put, once there are any

    def fetch(self) -> None:
        """Bring what another environment has compiled, if one has; it blocks."""
        key = f"code/kernels-{_kind()}.zip"
        client = self._client()
        try:
            with border.crossing("fetching compiled kernels"):
                data = client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except FsdrayError as failed:
            # Nothing is lost but time: they are compiled here.
            self._key = key
            if border.code_of(failed.__cause__ or failed) != "NoSuchKey":
                print(f"fsdray: {failed}", file=sys.stderr)
            return
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            archive.extractall(self._folder)

    def keep(self) -> None:
        """Put there what this environment has compiled, if that is new; it blocks."""
        if self._key is None or len(files := sorted(self._folder.glob(_OURS))) < 2:
            return  # an index and the code that it names
        key, self._key = self._key, None
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            for path in files:
                archive.write(path, path.relative_to(self._folder))
        try:
            with border.crossing("keeping compiled kernels"):
                # Who is second has compiled the same.
                self._client().put_object(
                    Bucket=self._bucket, Key=key, Body=data.getvalue(), IfNoneMatch="*"
                )
        except FsdrayError as failed:
            print(f"fsdray: others will compile again: {failed}", file=sys.stderr)

    def _client(self) -> Any:
        import boto3

        return boto3.client("s3", region_name=self._region)


def _kind() -> str:
    """A name for what runs the same machine code of the same source."""
    from importlib import metadata  # brings all of email, and is needed once

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = {line for line in lines if line.startswith(_FACTS)}
    source = Path(os.environ["LAMBDA_TASK_ROOT"], _SOURCE).read_bytes()
    told = (platform.machine(), sys.version, metadata.version("numba"), sorted(facts), source)
    return hashlib.sha256(repr(told).encode()).hexdigest()[:32]
