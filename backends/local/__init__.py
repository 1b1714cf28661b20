"""The platform that needs no account: this machine.

`functions` runs calls in worker processes that `forking` makes from the `template`; `messages`
keeps inboxes in the driver; `objects` keeps blobs in the session's `directory`; `backend` puts
them together, `process` is a worker's main, and `link` is what they talk through.
"""

from fsdray.backends.local.backend import connect

__all__ = ["connect"]
