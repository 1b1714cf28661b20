"""Lambda's quotas (its Developer Guide, "Lambda quotas"), and what a user of the host sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

MB = 1024 * 1024

SYNCHRONOUS_PAYLOAD = 6 * MB
ASYNCHRONOUS_PAYLOAD = 1 * MB
RESPONSE_PAYLOAD = 6 * MB + 100  # what the service allows for its own envelope
REQUEST = 69_905_067  # bytes of any request: 50 MB of zip in base64
UNZIPPED = 250 * MB
LOG_TAIL = 4096
INIT_SECONDS = 10.0
ASYNCHRONOUS_RETRIES = 2
EVENT_SECONDS = 6 * 3600  # that an asynchronous call may wait
CHAIN = 16  # calls of one function in one chain, after which they are a loop
VARIABLES = 4096  # bytes of a function's environment variables


@dataclass(frozen=True)
class HostSettings:
    """How a host is to be.

    Parameters
    ----------
    port : where it listens on this machine; 0 takes a free one.
    concurrency : the account's limit on concurrent executions.
    region, account : what its ARNs say.
    endpoint_url : where S3 is, for code that is given by bucket and key, and what the functions
        find in ``AWS_ENDPOINT_URL``.
    environment : variables that every function is given, below its own.
    idle : seconds after which an unused environment is ended.
    retry_waits : seconds before the first and the second retry of a failed asynchronous call
        (Lambda's are 60 and 120).
    logs : a file to which a line of JSON is appended for each event of the functions' logs, with
        its time (in ms, as CloudWatch has it), group, stream and message.
    cloudwatch : whether the events also go to CloudWatch Logs at `endpoint_url`, into log groups
        that are there (Lambda makes none if the function's role may not).
    access_log : a file to which a line of JSON is appended for each request.
    directory : where its own directory is made; the temporary directory by default.
    is_isolated : whether functions import from their package, the standard library and AWS's
        runtime client alone, as in Lambda; else also what is installed beside the host.
    """

    port: int = 0
    concurrency: int = 1000
    region: str = "us-east-1"
    account: str = "000000000000"
    endpoint_url: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    idle: float = 300.0
    retry_waits: tuple[float, float] = (60.0, 120.0)
    logs: str | os.PathLike[str] | None = None
    cloudwatch: bool = False
    access_log: str | os.PathLike[str] | None = None
    directory: str | os.PathLike[str] | None = None
    is_isolated: bool = False
