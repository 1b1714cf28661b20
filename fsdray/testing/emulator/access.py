"""The access log: a line of JSON for each request that ministack answered.

It runs in ministack's process, with nothing but the standard library. A line tells what a bill
would count: service, operation and status, the sizes of the messages in it, how many of a batch
failed, how many bytes went each way, and by what asked, as its headers say. It is made from the
requests as they came over the wire, and knows nothing of who sent them.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import IO, Any

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_SIGNED_FOR = re.compile(r"Credential=[^/]+/\d+/[^/]+/([^/]+)/aws4_request")
_READ = ("sqs", "sns")  # the services whose bodies are looked into


class AccessLog:
    """An ASGI application that hands requests on, and writes a line for each.

    Parameters
    ----------
    app : what answers.
    file : where lines are appended, each by one write.
    """

    def __init__(self, app: App, file: IO[bytes]) -> None:
        self._app = app
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/_ministack"):
            await self._app(scope, receive, send)
            return
        request = _Request(scope)
        asked, answered = bytearray(), bytearray()

        async def receive_seen() -> dict[str, Any]:
            event = await receive()
            if event["type"] == "http.request":
                request.received += len(event.get("body", b""))
                if request.is_read:
                    asked.extend(event.get("body", b""))
            return event

        async def send_seen(event: dict[str, Any]) -> None:
            if event["type"] == "http.response.start":
                request.status = event["status"]
            elif event["type"] == "http.response.body":
                request.sent += len(event.get("body", b""))
                if request.is_read or request.status >= 400:
                    answered.extend(event.get("body", b""))
                if not event.get("more_body"):
                    # Before the client hears of it: who has an answer finds its line.
                    self._write(request, bytes(asked), bytes(answered))
            await send(event)

        await self._app(scope, receive_seen, send_seen)

    def _write(self, request: _Request, asked: bytes, answered: bytes) -> None:
        self._file.write(json.dumps(request.line(asked, answered)).encode() + b"\n")


class _Request:
    def __init__(self, scope: Scope) -> None:
        self._began = time.time()
        self._headers = {
            k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]
        }
        self._method: str = scope["method"]
        self._path: str = scope["path"]
        query = scope.get("query_string", b"").decode("latin-1")
        self._query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        credential = self._headers.get("authorization", "") or "Credential=" + self._query.get(
            "X-Amz-Credential", ""
        )
        found = _SIGNED_FOR.search(credential)
        self.service = found[1] if found else "unknown"
        self.is_read = self.service not in ("s3", "s3express")
        self.status = 0
        self.received = self.sent = 0  # bytes of bodies

    def line(self, asked: bytes, answered: bytes) -> dict[str, Any]:
        """What is written down of it."""
        line: dict[str, Any] = {
            "time": round(self._began, 6),
            "service": self.service,
            "operation": "",
            "by": self._asker(),
            "status": self.status,
            "received": self.received,
            "sent": self.sent,
        }
        if self.service in ("s3", "s3express"):
            line["operation"] = self._s3_operation()
            line["key"] = self._path.lstrip("/")
            if "range" in self._headers:
                line["range"] = self._headers["range"]
        else:
            target = self._headers.get("x-amz-target", "")
            if target:
                line["operation"] = target.rpartition(".")[2]
                body = _json(asked)
            else:
                body = dict(urllib.parse.parse_qsl(asked.decode("latin-1"), True))
                line["operation"] = body.get("Action", "")
            if self.service == "sqs":
                line |= _sqs(line["operation"], body, _json(answered))
            elif self.service == "sns":
                line |= _sns(body, answered)
        if self.status >= 400:
            line["error"] = _error(answered, self._headers)
        return line

    def _asker(self) -> str:
        """Whether a session of fsdray asks, from a function or not, or somebody else."""
        if not self._headers.get("user-agent", "").startswith("fsdray/"):
            return "other"
        # What AWS's clients tell of the call that they are used in.
        return "function" if "x-amzn-trace-id" in self._headers else "driver"

    def _s3_operation(self) -> str:
        query, on_key = self._query, "/" in self._path.strip("/")
        if not self._path.strip("/"):
            return "ListBuckets"
        if not on_key:
            listed = query.get("list-type") == "2"
            named = {
                "GET": "ListObjectsV2" if listed else "ListObjects",
                "POST": "DeleteObjects" if "delete" in query else "PostObject",
                "PUT": "CreateBucket",
                "HEAD": "HeadBucket",
                "DELETE": "DeleteBucket",
            }
            others = [name for name in query if name not in ("list-type", "delete", "x-id")]
            if self._method == "GET" and "session" in query:
                return "CreateSession"
            if "uploads" in query:
                return "ListMultipartUploads"
            if "versions" in query:
                return "ListObjectVersions"
            if self._method != "POST" and any(not query[name] for name in others) and not listed:
                return f"{self._method.title()}Bucket{others[0].title()}"
            return named.get(self._method, self._method)
        if "uploadId" in query:
            return {
                "PUT": "UploadPart",
                "POST": "CompleteMultipartUpload",
                "DELETE": "AbortMultipartUpload",
                "GET": "ListParts",
            }[self._method]
        if "uploads" in query:
            return "CreateMultipartUpload"
        if self._method == "PUT" and "x-amz-copy-source" in self._headers:
            return "CopyObject"
        return f"{self._method.title()}Object"


def _sqs(operation: str, asked: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    seen: dict[str, Any] = {"to": str(asked.get("QueueUrl", "")).rpartition("/")[2]}
    if operation in ("SendMessage", "SendMessageBatch"):
        entries = asked.get("Entries") or [asked]
        seen["messages"] = [_sqs_size(each, "MessageBody") for each in entries]
    elif operation == "ReceiveMessage":
        seen["messages"] = [_sqs_size(each, "Body") for each in told.get("Messages") or ()]
    elif "Entries" in asked:
        seen["entries"] = len(asked["Entries"])
    if told.get("Failed"):
        seen["failed"] = len(told["Failed"])
    return seen


def _sqs_size(message: Mapping[str, Any], body: str) -> int:
    attributes = message.get("MessageAttributes") or {}
    return len(str(message.get(body, "")).encode()) + sum(
        _attribute(name, value["DataType"], value.get("StringValue"), value.get("BinaryValue"))
        for name, value in attributes.items()
    )


def _sns(asked: Mapping[str, str], answered: bytes) -> dict[str, Any]:
    if not asked.get("Action", "").startswith("Publish"):
        return {}
    seen: dict[str, Any] = {"to": asked.get("TopicArn", "").rpartition(":")[2]}
    if asked["Action"] == "Publish":
        seen["messages"] = [_sns_size(asked, "")]
    else:
        entries = "PublishBatchRequestEntries.member."
        numbers = {
            name[len(entries) :].partition(".")[0] for name in asked if name.startswith(entries)
        }
        seen["messages"] = [
            _sns_size(asked, f"{entries}{number}.") for number in sorted(numbers, key=int)
        ]
    if failed := len(re.findall(rb"<SenderFault>", answered)):
        seen["failed"] = failed
    return seen


def _sns_size(asked: Mapping[str, str], prefix: str) -> int:
    size = len(asked.get(f"{prefix}Message", "").encode("latin-1"))
    for at in _numbered(asked, f"{prefix}MessageAttributes.entry."):
        size += _attribute(
            asked[f"{at}Name"],
            asked[f"{at}Value.DataType"],
            asked.get(f"{at}Value.StringValue"),
            asked.get(f"{at}Value.BinaryValue"),
        )
    return size


def _numbered(asked: Iterable[str], prefix: str) -> Iterator[str]:
    known, number = set(asked), 1
    while f"{prefix}{number}.Name" in known:
        yield f"{prefix}{number}."
        number += 1


def _attribute(name: str, kind: str, text: str | None, binary: str | None) -> int:
    """Bytes that a message attribute counts: its name, its type and its value."""
    value = len(base64.b64decode(binary)) if binary is not None else len((text or "").encode())
    return len(name.encode()) + len(kind.encode()) + value


def _json(data: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):  # an answer may be empty, or an error in XML
        told = json.loads(data)
        if isinstance(told, dict):
            return told
    return {}


def _error(answered: bytes, headers: Mapping[str, str]) -> str:
    found = re.search(rb"<Code>([^<]+)</Code>", answered)
    if found:
        return found[1].decode()
    return str(_json(answered).get("__type", "")).rpartition("#")[2]
