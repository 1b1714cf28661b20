"""AWS: functions are Lambda's, messages SNS's and SQS's, objects S3's.

`clients` are AWS's own and the meter at their wire, `border` turns their errors into ours, and
`functions`, `messages` and `objects` are the three services over what `stack` says was deployed.
`handler` is what runs inside a function.
"""

from __future__ import annotations

from fsdray.backends.aws.backend import connect

__all__ = ["connect"]
