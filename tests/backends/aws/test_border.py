"""Every error of AWS's clients becomes one of ours that says what to run."""

from __future__ import annotations

from typing import Any

import pytest
from botocore import exceptions
from botocore.exceptions import ClientError

from fsdray.backends.aws import border
from fsdray.errors import FsdrayError, ServiceError, SettingsError, Throttled


def of_service(code: str, status: int = 400, operation: str = "PutObject") -> ClientError:
    return ClientError(
        {
            "Error": {"Code": code, "Message": "they said"},
            "ResponseMetadata": {"HTTPStatusCode": status},
        },  # type: ignore[arg-type]
        operation,
    )


def of_client(kind: type[Exception], **fields: Any) -> Exception:
    return kind(**fields)


TABLE: list[tuple[Exception, type[FsdrayError], str]] = [
    (exceptions.NoCredentialsError(), SettingsError, "aws configure"),
    (
        exceptions.PartialCredentialsError(provider="env", cred_var="x"),
        SettingsError,
        "aws configure",
    ),
    (exceptions.ProfileNotFound(profile="me"), SettingsError, "FSDRAY_PROFILE"),
    (exceptions.NoRegionError(), SettingsError, "FSDRAY_REGION"),
    (exceptions.InvalidRegionError(region_name="x y"), SettingsError, "FSDRAY_REGION"),
    (
        exceptions.TokenRetrievalError(provider="sso", error_msg="gone"),
        SettingsError,
        "aws sso login",
    ),
    (
        exceptions.CredentialRetrievalError(provider="role", error_msg="x"),
        SettingsError,
        "aws configure",
    ),
    (of_service("ExpiredToken"), SettingsError, "expired"),
    (of_service("ExpiredTokenException", 403), SettingsError, "aws configure"),
    (of_service("InvalidClientTokenId", 403), SettingsError, "does not know"),
    (of_service("SignatureDoesNotMatch", 403), SettingsError, "aws configure"),
    (of_service("AccessDenied", 403), ServiceError, "PutObject"),
    (of_service("AccessDeniedException", 403, "Invoke"), ServiceError, "fsdray doctor"),
    (of_service("403", 403, "HeadObject"), ServiceError, "fsdray doctor"),
    (of_service("NoSuchBucket", 404), ServiceError, "fsdray deploy"),
    (of_service("AWS.SimpleQueueService.NonExistentQueue"), ServiceError, "fsdray deploy"),
    (of_service("ResourceNotFoundException", 404, "Invoke"), ServiceError, "fsdray deploy"),
    (of_service("SlowDown", 503), Throttled, "quota"),
    (of_service("ThrottlingException"), Throttled, "quota"),
    (of_service("InternalError", 500), ServiceError, "try again"),
    (of_service("SomethingNew"), ServiceError, "they said"),
    (
        exceptions.EndpointConnectionError(endpoint_url="http://x"),
        ServiceError,
        "AWS_ENDPOINT_URL",
    ),
    (exceptions.ConnectTimeoutError(endpoint_url="http://x"), ServiceError, "network"),
    (exceptions.ReadTimeoutError(endpoint_url="http://x"), ServiceError, "try again"),
    (exceptions.ConnectionClosedError(endpoint_url="http://x"), ServiceError, "lost"),
    (exceptions.HTTPClientError(error=ValueError("x")), ServiceError, "lost"),
    (TimeoutError(), ServiceError, "in time"),
    (ConnectionResetError("x"), ServiceError, "lost"),
    (exceptions.ParamValidationError(report="x"), ServiceError, "ParamValidationError"),
]


@pytest.mark.parametrize(
    ("theirs", "ours", "says"), TABLE, ids=lambda x: str(x)[:40] if isinstance(x, Exception) else ""
)
def test_an_error_says_what_was_done_and_what_to_run(
    theirs: Exception, ours: type[FsdrayError], says: str
) -> None:
    with pytest.raises(ours) as caught, border.crossing("putting the object 'x'"):
        raise theirs
    assert type(caught.value) is ours
    assert says in str(caught.value)
    assert "putting the object 'x'" in str(caught.value)
    assert caught.value.__cause__ is (None if ours is SettingsError else theirs)


def test_what_is_not_awss_goes_through_as_it_is() -> None:
    for error in (KeyError("mine"), ServiceError("ours")):
        with pytest.raises(type(error)) as caught, border.crossing("something"):
            raise error
        assert caught.value is error
