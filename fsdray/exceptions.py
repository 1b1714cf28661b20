"""Ray's names for our errors, so that ``import fsdray as ray`` finds what it expects.

The errors themselves, and what each says, are in `fsdray.errors`. Several of Ray's names may be one
error of ours; those of actors and of clusters stand for what cannot happen here, and are not there.
"""

from typing import NoReturn

from fsdray.errors import FsdrayError as RayError
from fsdray.errors import FunctionCrashed as NodeDiedError
from fsdray.errors import FunctionCrashed as WorkerCrashedError
from fsdray.errors import GetTimeout as GetTimeoutError
from fsdray.errors import ObjectLost as ObjectFetchTimedOutError
from fsdray.errors import ObjectLost as ObjectFreedError
from fsdray.errors import ObjectLost as ObjectLostError
from fsdray.errors import ObjectLost as ObjectReconstructionFailedError
from fsdray.errors import ObjectLost as OwnerDiedError
from fsdray.errors import OutOfMemory as OutOfMemoryError
from fsdray.errors import PlatformError as RaySystemError
from fsdray.errors import ServiceError as LocalRayletDiedError
from fsdray.errors import ServiceError as ObjectStoreFullError
from fsdray.errors import ServiceError as OutOfDiskError
from fsdray.errors import ServiceError as RpcError
from fsdray.errors import SettingsError as RuntimeEnvSetupError
from fsdray.errors import SettingsError as TaskUnschedulableError
from fsdray.errors import TaskCancelled as TaskCancelledError
from fsdray.errors import TaskError as RayTaskError

__all__ = [
    "GetTimeoutError",
    "LocalRayletDiedError",
    "NodeDiedError",
    "ObjectFetchTimedOutError",
    "ObjectFreedError",
    "ObjectLostError",
    "ObjectReconstructionFailedError",
    "ObjectStoreFullError",
    "OutOfDiskError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "RayError",
    "RaySystemError",
    "RayTaskError",
    "RpcError",
    "RuntimeEnvSetupError",
    "TaskCancelledError",
    "TaskUnschedulableError",
    "WorkerCrashedError",
]


def __getattr__(name: str) -> NoReturn:
    why = ": what it tells of, in actors or clusters, cannot happen here" * name.endswith("Error")
    raise AttributeError(f"module 'fsdray.exceptions' has no attribute {name!r}{why}")
