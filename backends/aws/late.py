"""Packages that do not fit into a function's code: fetched from the bucket when first imported.

Lambda takes 250 MB of code, and a compiler alone may have 170. What `package` left out of the zip
lies in the stack's bucket; this unpacks it into ``/tmp`` of the environment that imports it.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import json
import os
import sys
import tempfile
import threading
import zipfile
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

INDEX = "fsdray-late.json"
"""Beside the code: names of packages, and the keys of their zips in the bucket."""


class Late(MetaPathFinder):
    """Finds what nobody else does, last of all finders.

    Parameters
    ----------
    index : top-level names, and keys. bucket, region : where those are.
    """

    def __init__(self, index: Mapping[str, str], bucket: str, region: str) -> None:
        self._index = index
        self._bucket = bucket
        self._region = region
        self._lock = threading.Lock()
        self._folder = Path(tempfile.gettempdir(), "fsdray-late")

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Fetch a package that is asked for, and say where it is."""
        if path is not None or fullname not in self._index:
            return None
        with self._lock:
            self._fetch(fullname)
        return importlib.machinery.PathFinder.find_spec(fullname, [str(self._folder)], target)

    def _fetch(self, name: str) -> None:
        if (self._folder / name).exists():
            return
        import boto3

        client = boto3.client("s3", region_name=self._region)
        data = io.BytesIO()
        client.download_fileobj(self._bucket, self._index[name], data)
        self._folder.mkdir(exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=self._folder) as making,
            zipfile.ZipFile(data) as archive,
        ):
            archive.extractall(making)
            # The package last: who finds it finds its libraries too.
            for each in sorted(os.listdir(making), key=lambda each: each == name):
                Path(making, each).rename(self._folder / each)
        if str(self._folder) not in sys.path:
            sys.path.append(str(self._folder))


def install(bucket: str, region: str) -> None:
    """Have packages of the bucket found, if this function's code says that there are some."""
    path = Path(os.environ.get("LAMBDA_TASK_ROOT", "."), INDEX)
    try:
        index = json.loads(path.read_text())
    except FileNotFoundError:
        return  # a package of another make has all in it
    if index:
        sys.meta_path.append(Late(index, bucket, region))
