"""Ray's names for our errors, so that ``import fsdray as ray`` finds what it expects.

The errors themselves, and what each says, are in `fsdray.errors`.
"""

from fsdray.errors import FsdrayError as RayError
from fsdray.errors import FunctionCrashed as WorkerCrashedError
from fsdray.errors import GetTimeout as GetTimeoutError
from fsdray.errors import ObjectLost as ObjectLostError
from fsdray.errors import OutOfMemory as OutOfMemoryError
from fsdray.errors import PlatformError as RaySystemError
from fsdray.errors import TaskCancelled as TaskCancelledError
from fsdray.errors import TaskError as RayTaskError

__all__ = [
    "GetTimeoutError",
    "ObjectLostError",
    "OutOfMemoryError",
    "RayError",
    "RaySystemError",
    "RayTaskError",
    "TaskCancelledError",
    "WorkerCrashedError",
]
