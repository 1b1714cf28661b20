"""The one place where AWS's errors become fsdray's: what went wrong, and what to run.

`translated` is a table over botocore's exceptions and the services' error codes. What a function
did wrong is no error of an API: `functions` reads that from the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fsdray.errors import FsdrayError, ServiceError, SettingsError, Throttled

SIGN_IN = "run `aws configure` (or `aws sso login`), or name a profile with FSDRAY_PROFILE"

_EXPIRED = {
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "TokenRefreshRequired",
    "InvalidIdentityToken",
}
_UNKNOWN_KEYS = {
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidSignatureException",
    "IncompleteSignature",
    "MissingAuthenticationToken",
    "AuthFailure",
}
_DENIED = {
    "AccessDenied",
    "AccessDeniedException",
    "AuthorizationError",
    "AuthorizationErrorException",
    "UnauthorizedOperation",
    "KMSAccessDenied",
    "KMSAccessDeniedException",
    "AllAccessDisabled",
    "403",  # a HEAD has no body that says more
}
THROTTLED = {
    "BandwidthLimitExceeded",
    "EC2ThrottledException",
    "LimitExceededException",
    "OverLimit",
    "KMSThrottling",
    "KMSThrottlingException",
    "PriorRequestNotComplete",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "SlowDown",
    "ThrottledException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "TransactionInProgressException",
}
_GONE = {
    "NoSuchBucket": "the stack's bucket",
    "AWS.SimpleQueueService.NonExistentQueue": "a queue of the stack",
    "QueueDoesNotExist": "a queue of the stack",
    "NotFound": "a topic of the stack",
    "NotFoundException": "a resource of the stack",
    "TopicNotFound": "a topic of the stack",
    "ResourceNotFoundException": "a function of the stack",
}


@contextmanager
def crossing(what: str) -> Iterator[None]:
    """Within, errors of AWS's clients are raised as ours; `what` says what was being done."""
    # Names of botocore are needed only where something went wrong; its import takes long.
    try:
        yield
    except (FsdrayError, asyncio.CancelledError):
        raise
    except Exception as error:
        ours = translated(error, what)
        if ours is None:
            raise
        # What a user set wrong is said in full; where in AWS's client it was seen is no help.
        raise ours from (None if isinstance(ours, SettingsError) else error)


def code_of(error: BaseException) -> str:
    """The service's code of an error, such as ``"NoSuchBucket"``; ``""`` where it is none."""
    response = getattr(error, "response", None)
    if not isinstance(response, Mapping):
        return ""
    said: Any = response.get("Error") or {}
    return str(said.get("Code") or "")


def status_of(error: BaseException) -> int:
    """The HTTP status of a service's error; 0 where it is none."""
    response = getattr(error, "response", None)
    if not isinstance(response, Mapping):
        return 0
    return int((response.get("ResponseMetadata") or {}).get("HTTPStatusCode") or 0)


def was_cut(error: Exception) -> bool:
    """Whether a connection broke, or said nothing any more: what only reads may be asked again."""
    from aiohttp import ClientError
    from botocore.exceptions import HTTPClientError, ReadTimeoutError, ResponseStreamingError

    kinds = (ClientError, HTTPClientError, ReadTimeoutError, ResponseStreamingError, OSError)
    return not status_of(error) and isinstance(error, kinds)


def translated(error: Exception, what: str) -> FsdrayError | None:
    """Our error for one of AWS's clients; None for one that is not theirs.

    Parameters
    ----------
    what : what was being done, as ``"putting the object 'x'"``.
    """
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        return _of_service(error, what)
    if not isinstance(error, exceptions.BotoCoreError | OSError | TimeoutError):
        from aiohttp import ClientError

        if isinstance(error, ClientError):  # botocore is not there while a body is read
            return ServiceError(f"{what}: the connection to AWS was lost ({error}): try again")
        return None
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return SettingsError(f"{what}: there are no AWS credentials: {SIGN_IN}")
    if isinstance(error, exceptions.ProfileNotFound):
        return SettingsError(
            f"{what}: {error}: see `aws configure list-profiles`, and name one with "
            "FSDRAY_PROFILE or AWS_PROFILE"
        )
    if isinstance(error, exceptions.NoRegionError):
        return SettingsError(
            f"{what}: no AWS region is set: set FSDRAY_REGION or AWS_REGION, or run `aws configure`"
        )
    if isinstance(error, exceptions.InvalidRegionError):
        return SettingsError(f"{what}: {error}: check FSDRAY_REGION or AWS_REGION")
    if isinstance(
        error,
        exceptions.TokenRetrievalError
        | exceptions.SSOError
        | exceptions.CredentialRetrievalError
        | exceptions.RefreshWithMFAUnsupportedError,
    ):
        return SettingsError(f"{what}: AWS credentials could not be had ({error}): {SIGN_IN}")
    if isinstance(error, exceptions.ConnectTimeoutError | exceptions.EndpointConnectionError):
        return ServiceError(
            f"{what}: AWS was not reached ({error}): check the network, a proxy or VPC endpoint, "
            "the region, and AWS_ENDPOINT_URL if it is set"
        )
    if isinstance(error, exceptions.ReadTimeoutError | TimeoutError):
        return ServiceError(f"{what}: AWS did not answer in time ({error}): try again")
    if isinstance(error, exceptions.HTTPClientError | exceptions.ConnectionError | OSError):
        return ServiceError(f"{what}: the connection to AWS was lost ({error}): try again")
    return ServiceError(f"{what}: {type(error).__name__}: {error}")


def _of_service(error: Any, what: str) -> FsdrayError:
    code, operation = code_of(error), error.operation_name
    said = error.response.get("Error", {}).get("Message") or "it said no more"
    if code in _EXPIRED:
        return SettingsError(
            f"{what}: the AWS credentials have expired: to sign in again, {SIGN_IN}"
        )
    if code in _UNKNOWN_KEYS:
        return SettingsError(f"{what}: AWS does not know these credentials ({said}): {SIGN_IN}")
    if code in _DENIED:
        return ServiceError(
            f"{what}: access denied to {operation} ({said}): run `fsdray doctor`, which lists the "
            "permissions that are missing"
        )
    if code in THROTTLED:
        return Throttled(
            f"{what}: AWS refused {operation} for its rate ({code}: {said}), after all the "
            "back-off: do less at one time, or ask AWS for a higher quota"
        )
    if code in _GONE:
        return ServiceError(
            f"{what}: {_GONE[code]} is not there ({said}): run `fsdray doctor` to see all that "
            "is missing; `fsdray destroy`, then `fsdray deploy`, make it again"
        )
    if status_of(error) >= 500:
        return ServiceError(f"{what}: AWS failed to {operation} ({code}: {said}): try again")
    return ServiceError(f"{what}: AWS refused {operation}: {code}: {said}")
