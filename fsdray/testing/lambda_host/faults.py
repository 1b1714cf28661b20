"""The errors that Lambda's API answers with, as it answers with them.

What a function's own code did wrong is no error of the API: it is an `Outcome` of `environment`.
"""

from __future__ import annotations

import json


class ApiFault(Exception):
    """An answer of the API other than success.

    Parameters
    ----------
    status : the HTTP status.
    code : the exception's name, as the SDKs raise it.
    message : what it says.
    reason : the `Reason` of a throttled call.
    """

    def __init__(self, status: int, code: str, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.reason = reason

    def body(self) -> bytes:
        said: dict[str, str] = {"Type": "User"}
        if self.reason is None:
            said["Message"] = self.message
        else:  # only the throttling errors are spelt so
            said |= {"Reason": self.reason, "message": self.message}
        return json.dumps(said).encode()


def not_found(message: str) -> ApiFault:
    return ApiFault(404, "ResourceNotFoundException", message)


def conflict(message: str) -> ApiFault:
    return ApiFault(409, "ResourceConflictException", message)


def invalid(message: str) -> ApiFault:
    return ApiFault(400, "InvalidParameterValueException", message)


def invalid_request(message: str) -> ApiFault:
    return ApiFault(400, "InvalidRequestContentException", message)


def constraint(value: object, name: str, rule: str) -> ApiFault:
    """A value outside of what the API's model allows."""
    return ApiFault(
        400,
        "ValidationException",
        f"1 validation error detected: Value '{value}' at '{name}' failed to satisfy constraint: "
        f"Member must {rule}",
    )


def too_large(message: str) -> ApiFault:
    return ApiFault(413, "RequestEntityTooLargeException", message)


def throttled(reason: str) -> ApiFault:
    return ApiFault(429, "TooManyRequestsException", "Rate Exceeded.", reason)


def recursive() -> ApiFault:
    return ApiFault(
        400,
        "RecursiveInvocationException",
        "Lambda has detected your function being invoked in a recursive loop with other AWS "
        "resources and stopped your function's invocation.",
    )
