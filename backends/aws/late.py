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
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path
from types import ModuleType

from fsdray.backends.aws.compiled import Compiled

INDEX = "fsdray-late.json"
"""Beside the code: names of packages, and the keys of their zips in the bucket."""


_COMPILER = "llvmlite"


class Late(MetaPathFinder, Loader):
    """Finds what nobody else does, last of all finders, and fetches it.

    Parameters
    ----------
    index : top-level names, and keys. bucket, region : where those are.
    compiled : fetched with numba's compiler.
    """

    def __init__(
        self, index: Mapping[str, str], bucket: str, region: str, compiled: Compiled
    ) -> None:
        self._index = index
        self._compiled = compiled
        self._bucket = bucket
        self._region = region
        self._folder = Path(tempfile.gettempdir(), "fsdray-late")

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Say of a package that it can be had; to load it will fetch it."""
        if path is not None or fullname not in self._index:
            return None
        # Nothing is fetched here: a finder is asked under the lock of all imports, and AWS's
        # clients have threads that import.
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Fetch a package, and make its spec what it is where it is now: importing goes on so."""
        self._fetch(spec.name)
        if spec.name == _COMPILER:
            self._compiled.fetch()
        found = importlib.machinery.PathFinder.find_spec(spec.name, [str(self._folder)])
        if found is None or found.loader is None:
            raise ImportError(f"{self._index[spec.name]} holds no {spec.name}", name=spec.name)
        for name, value in vars(found).items():
            setattr(spec, name, value)
        return found.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Never asked: its spec has the package's own loader by then."""
        raise ImportError(f"{module.__name__} is not loaded", name=module.__name__)

    def _fetch(self, name: str) -> None:
        if (self._folder / name).exists():
            return
        # Of these a function that fetches nothing needs none.
        import tarfile

        import boto3
        import zstandard

        client = boto3.client("s3", region_name=self._region)
        data = io.BytesIO()
        client.download_fileobj(self._bucket, self._index[name], data)
        data.seek(0)
        self._folder.mkdir(exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=self._folder) as making,
            # Half the time that a zip takes, and never whole in memory.
            zstandard.ZstdDecompressor().stream_reader(data) as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,
        ):
            archive.extractall(making, filter="data")
            # The package last: who finds it finds its libraries too.
            for each in sorted(os.listdir(making), key=lambda each: each == name):
                Path(making, each).rename(self._folder / each)
        if str(self._folder) not in sys.path:
            sys.path.append(str(self._folder))


def install(bucket: str, region: str) -> Compiled | None:
    """Have packages of the bucket found, if this function's code says that there are some.

    Then it gives the kernels that come with the compiler, to be kept after each call.
    """
    path = Path(os.environ.get("LAMBDA_TASK_ROOT", "."), INDEX)
    try:
        index = json.loads(path.read_text())
    except FileNotFoundError:
        return None  # a package of another make has all in it
    if not index:
        return None
    compiled = Compiled(bucket, region)
    sys.meta_path.append(Late(index, bucket, region, compiled))
    return compiled
