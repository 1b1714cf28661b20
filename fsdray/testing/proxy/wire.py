"""What requests to AWS ask, how AWS refuses, and batches of which a part fails.

Lambda and SQS talk JSON, SNS forms and XML, S3 paths and XML. Pure functions of bytes.
"""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Mapping
from typing import NamedTuple

_SIGNED_FOR = re.compile(r"Credential=[^/]+/\d+/[^/]+/([^/]+)/aws4_request")
_MEMBER = "PublishBatchRequestEntries.member."
_KEY = re.compile(r"<Object>.*?<Key>(.*?)</Key>.*?</Object>", re.DOTALL)
_XML = "text/xml"
_ERRORS = {
    429: ("TooManyRequestsException", "Rate exceeded"),
    503: ("ServiceUnavailable", "Please try again"),
    500: ("InternalError", "We encountered an internal error. Please try again."),
    403: ("ExpiredToken", "The security token included in the request is expired"),
}


class Refusal(NamedTuple):
    """An answer that the service did not give."""

    status: int
    headers: dict[str, str]
    body: bytes


def asked_of(method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[str, str]:
    """Service and operation of a request; most of S3's are named after their methods.

    `path` has its query with it.
    """
    path, _, query = path.partition("?")
    found = _SIGNED_FOR.search(headers.get("authorization", ""))
    service = found[1] if found else "unknown"
    target = headers.get("x-amz-target", "")
    if target:
        return service, target.rpartition(".")[2]
    if service == "lambda":
        return service, "Invoke" if path.endswith("/invocations") else method
    if service == "s3":
        if method == "POST" and "delete" in urllib.parse.parse_qs(query, keep_blank_values=True):
            return service, "DeleteObjects"
        return service, f"{method.title()}Object"
    return service, dict(urllib.parse.parse_qsl(body.decode("latin-1"))).get("Action", method)


def refusal(service: str, status: int) -> Refusal:
    """An error as the service would tell it."""
    code, message = _ERRORS[status]
    if service == "s3":
        code = {429: "SlowDown", 503: "SlowDown"}.get(status, code)
        status = 503 if status == 429 else status
        text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        return Refusal(status, {"Content-Type": "application/xml"}, text.encode())
    if service == "sns":
        text = (
            "<ErrorResponse><Error><Type>Sender</Type>"
            f"<Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"
        )
        return Refusal(status, {"Content-Type": _XML}, text.encode())
    if service == "lambda" and status in (500, 503):
        code = "ServiceException"
    body = json.dumps({"__type": code, "message": message, "Type": "Service"}).encode()
    headers = {"Content-Type": "application/json", "x-amzn-ErrorType": code}
    return Refusal(status, headers, body)


def first_of_batch(operation: str, body: bytes) -> tuple[bytes, list[str]]:
    """A batch with its first entry only, and the ids of the others."""
    if operation == "PublishBatch":
        fields = urllib.parse.parse_qsl(body.decode(), keep_blank_values=True)
        ids = {
            name[len(_MEMBER) :].partition(".")[0]: value
            for name, value in fields
            if name.startswith(_MEMBER) and name.endswith(".Id")
        }
        kept = [
            (name, value)
            for name, value in fields
            if not name.startswith(_MEMBER) or name.startswith(f"{_MEMBER}1.")
        ]
        left = [each for number, each in ids.items() if number != "1"]
        return urllib.parse.urlencode(kept).encode(), left
    if operation == "DeleteObjects":
        text = body.decode()
        first, *others = _KEY.finditer(text)
        for each in reversed(others):
            text = text[: each.start()] + text[each.end() :]
        return text.encode(), [each[1] for each in others]
    told = json.loads(body)
    first, *others = told["Entries"]
    return json.dumps(told | {"Entries": [first]}).encode(), [each["Id"] for each in others]


def with_failed(operation: str, body: bytes, ids: list[str]) -> bytes:
    """The answer to a batch, in which these entries failed."""
    code, message = _ERRORS[500]
    if operation == "PublishBatch":
        members = "".join(
            f"<member><Id>{each}</Id><Code>{code}</Code><Message>{message}</Message>"
            "<SenderFault>false</SenderFault></member>"
            for each in ids
        )
        text = re.sub(r"<Failed\s*/>|<Failed>.*?</Failed>", "", body.decode(), flags=re.DOTALL)
        end = "</PublishBatchResult>"
        return text.replace(end, f"<Failed>{members}</Failed>{end}").encode()
    if operation == "DeleteObjects":
        errors = "".join(
            f"<Error><Key>{each}</Key><Code>{code}</Code><Message>{message}</Message></Error>"
            for each in ids
        )
        # What there was nothing to tell of may be one empty element.
        text = re.sub(r"<DeleteResult([^>]*?)/>", r"<DeleteResult\1></DeleteResult>", body.decode())
        return text.replace("</DeleteResult>", f"{errors}</DeleteResult>").encode()
    told = json.loads(body)
    failed = [{"Id": each, "Code": code, "Message": message, "SenderFault": False} for each in ids]
    return json.dumps(told | {"Failed": [*(told.get("Failed") or ()), *failed]}).encode()


def without_messages(body: bytes) -> tuple[bytes, list[str]]:
    """The answer to a receive with nothing in it, and the receipts of what was there."""
    told = json.loads(body) if body else {}
    receipts = [each["ReceiptHandle"] for each in told.pop("Messages", None) or ()]
    return json.dumps(told).encode(), receipts
