"""The standard library's pool of processes, over fsdray's tasks: `Pool`.

`pool` starts calls, `results` is what they come to, `jobs` what runs in the workers.
"""

from fsdray.integrations.multiprocessing.pool import Pool
from fsdray.integrations.multiprocessing.results import AsyncResult, IMapIterator

__all__ = ["AsyncResult", "IMapIterator", "Pool"]
