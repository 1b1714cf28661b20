"""The platform that needs no account: this machine.

`functions` runs calls in worker processes that `forking` makes from the `template`; `messages` go
from process to process through files (`inbox`); `objects` keeps blobs in the session's `directory`,
some of them in files that are `rewritten`; `backend` puts them together, `process` is a worker's
main, and `link` is what it asks the driver through.
"""

from fsdray.backends.local.backend import connect

__all__ = ["connect"]
