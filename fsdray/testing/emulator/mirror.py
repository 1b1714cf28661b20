"""Functions of CloudFormation's stacks, made in the Lambda host instead of ministack.

It runs in ministack's process, with nothing but the standard library. A stack's resource becomes
the API call that CloudFormation would make; what the host refuses fails the resource.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

Made = tuple[str, dict[str, str]]  # a resource's physical id, and its attributes
Properties = Mapping[str, Any]

_CONFIGURATION = (
    "Description",
    "EphemeralStorage",
    "Environment",
    "Handler",
    "LoggingConfig",
    "Role",
    "Runtime",
    "SnapStart",
    "TracingConfig",
    "VpcConfig",
)
_NUMBERS = ("MemorySize", "Timeout")  # a template's parameters make them text
_SECONDS = 300.0


class Refused(ValueError):
    """The host's answer to a call that it did not do."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Host:
    """The Lambda API that functions are made in."""

    def __init__(self, url: str) -> None:
        self._url = url

    def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """One request.

        Raises
        ------
        Refused : with the host's reason.
        """
        request = urllib.request.Request(
            self._url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as response:
                data = response.read()
        except urllib.error.HTTPError as error:
            text = error.read().decode()
            try:
                told = json.loads(text)
                text = str(told.get("Message") or told.get("message") or text)
            except ValueError:
                pass  # not Lambda's own answer: as it is
            raise Refused(error.code, text) from error
        told = json.loads(data) if data else {}
        assert isinstance(told, dict)
        return told

    def remove(self, path: str) -> None:
        """Delete what may have gone already."""
        try:
            self.call("DELETE", path)
        except Refused as error:
            if error.status != 404:
                raise


def handlers(url: str, name_of: Callable[[str, str], str]) -> dict[str, dict[str, Any]]:
    """Handlers of resource types, as ministack keeps them.

    Parameters
    ----------
    url : the Lambda host's.
    name_of : makes a name from those of a stack and of a resource.
    """
    host = Host(url)
    functions = _Functions(host, name_of)
    return {
        "AWS::Lambda::Function": functions.handlers(),
        "AWS::Lambda::Version": _Versions(host).handlers(),
        "AWS::Lambda::Alias": _Aliases(host).handlers(),
        "AWS::Lambda::EventInvokeConfig": _EventConfigs(host).handlers(),
    }


class _Kind:
    """One type of resource."""

    def handlers(self) -> dict[str, Any]:
        return {
            "create": self.create,
            "update": self.update,
            "update_with_logical_id": True,
            "delete": self.delete,
        }

    def create(self, logical: str, new: Properties, stack: str) -> Made:
        raise NotImplementedError

    def update(
        self, made: str, old: Properties, new: Properties, stack: str, logical: str = ""
    ) -> Made:
        raise NotImplementedError

    def delete(self, made: str, old: Properties) -> None:
        raise NotImplementedError


class _Functions(_Kind):
    def __init__(self, host: Host, name_of: Callable[[str, str], str]) -> None:
        self._host = host
        self._name_of = name_of

    def create(self, logical: str, new: Properties, stack: str) -> Made:
        name = new.get("FunctionName") or self._name_of(stack, logical)
        body = _configuration(new) | {"FunctionName": name, "Code": _code(new)}
        body |= {each: new[each] for each in ("Architectures", "PackageType") if each in new}
        told = self._host.call(
            "POST", "/2015-03-31/functions", body | {"Tags": _tags(new.get("Tags"))}
        )
        try:
            self._set_others(name, {}, new)
        except Refused:
            self._host.remove(_path(name))  # as CloudFormation clears what failed
            raise
        return name, {"Arn": told["FunctionArn"]}

    def update(
        self, made: str, old: Properties, new: Properties, stack: str, logical: str = ""
    ) -> Made:
        if (new.get("FunctionName") or self._name_of(stack, logical)) != made:
            replacement = self.create(logical, new, stack)
            self.delete(made, old)
            return replacement
        path = _path(made)
        if any(old.get(each) != new.get(each) for each in ("Code", "Architectures")):
            architectures = {k: new[k] for k in ("Architectures",) if k in new}
            self._host.call("PUT", path + "/code", _code(new) | architectures)
        told = self._host.call("PUT", path + "/configuration", _configuration(new))
        self._set_others(made, old, new)
        tags, before = _tags(new.get("Tags")), _tags(old.get("Tags"))
        arn = urllib.parse.quote(told["FunctionArn"], safe="")
        if tags != before:
            gone = urllib.parse.urlencode([("tagKeys", key) for key in before if key not in tags])
            if gone:
                self._host.call("DELETE", f"/2017-03-31/tags/{arn}?{gone}")
            self._host.call("POST", f"/2017-03-31/tags/{arn}", {"Tags": tags})
        return made, {"Arn": told["FunctionArn"]}

    def delete(self, made: str, old: Properties) -> None:
        self._host.remove(_path(made))

    def _set_others(self, name: str, old: Properties, new: Properties) -> None:
        """What is no part of the configuration, and has calls of its own."""
        concurrency = f"/2017-10-31/functions/{name}/concurrency"
        reserved = "ReservedConcurrentExecutions"
        if reserved in new:
            self._host.call("PUT", concurrency, {reserved: int(new[reserved])})
        elif reserved in old:
            self._host.remove(concurrency)
        loop = {"RecursiveLoop": new.get("RecursiveLoop", "Terminate")}
        if loop["RecursiveLoop"] != old.get("RecursiveLoop", "Terminate"):
            self._host.call("PUT", f"/2024-08-31/functions/{name}/recursion-config", loop)


class _Versions(_Kind):
    def __init__(self, host: Host) -> None:
        self._host = host

    def create(self, logical: str, new: Properties, stack: str) -> Made:
        told = self._host.call(
            "POST",
            _path(new["FunctionName"]) + "/versions",
            {each: new[each] for each in ("Description", "CodeSha256") if each in new},
        )
        return told["FunctionArn"], {
            "Version": told["Version"],
            "FunctionArn": told["FunctionArn"],
        }

    def update(
        self, made: str, old: Properties, new: Properties, stack: str, logical: str = ""
    ) -> Made:
        # The old one stays until the function goes: an alias may still name it when this is asked.
        return self.create(logical, new, stack)

    def delete(self, made: str, old: Properties) -> None:
        number = made.rpartition(":")[2]
        self._host.remove(f"{_path(old['FunctionName'])}?Qualifier={number}")


class _Aliases(_Kind):
    def __init__(self, host: Host) -> None:
        self._host = host

    def create(self, logical: str, new: Properties, stack: str) -> Made:
        body = {
            each: new[each] for each in ("Name", "FunctionVersion", "Description") if each in new
        }
        told = self._host.call("POST", _path(new["FunctionName"]) + "/aliases", body)
        return told["AliasArn"], {"AliasArn": told["AliasArn"]}

    def update(
        self, made: str, old: Properties, new: Properties, stack: str, logical: str = ""
    ) -> Made:
        if any(old.get(each) != new.get(each) for each in ("Name", "FunctionName")):
            replacement = self.create(logical, new, stack)
            self.delete(made, old)
            return replacement
        body = {each: new[each] for each in ("FunctionVersion", "Description") if each in new}
        self._host.call("PUT", f"{_path(new['FunctionName'])}/aliases/{new['Name']}", body)
        return made, {"AliasArn": made}

    def delete(self, made: str, old: Properties) -> None:
        self._host.remove(f"{_path(old['FunctionName'])}/aliases/{old['Name']}")


class _EventConfigs(_Kind):
    def __init__(self, host: Host) -> None:
        self._host = host

    def create(self, logical: str, new: Properties, stack: str) -> Made:
        body: dict[str, Any] = {
            each: int(new[each])
            for each in ("MaximumRetryAttempts", "MaximumEventAgeInSeconds")
            if each in new
        }
        if "DestinationConfig" in new:
            body["DestinationConfig"] = new["DestinationConfig"]
        self._host.call("PUT", self._path(new), body)
        return f"{new['FunctionName']}:{new['Qualifier']}", {}

    def update(
        self, made: str, old: Properties, new: Properties, stack: str, logical: str = ""
    ) -> Made:
        replacement = self.create(logical, new, stack)
        if self._path(old) != self._path(new):
            self.delete(made, old)
        return replacement

    def delete(self, made: str, old: Properties) -> None:
        self._host.remove(self._path(old))

    def _path(self, properties: Properties) -> str:
        name = urllib.parse.quote(properties["FunctionName"], safe="")
        return (
            f"/2019-09-25/functions/{name}/event-invoke-config?Qualifier={properties['Qualifier']}"
        )


def _path(name: str) -> str:
    return "/2015-03-31/functions/" + urllib.parse.quote(name, safe="")


def _configuration(properties: Properties) -> dict[str, Any]:
    body = {each: properties[each] for each in _CONFIGURATION if each in properties}
    body |= {each: int(properties[each]) for each in _NUMBERS if each in properties}
    if "EphemeralStorage" in body:
        body["EphemeralStorage"] = {"Size": int(body["EphemeralStorage"]["Size"])}
    if "KmsKeyArn" in properties:
        body["KMSKeyArn"] = properties["KmsKeyArn"]
    # What a new template leaves out is no longer set.
    return {"Environment": {"Variables": {}}} | body


def _code(properties: Properties) -> dict[str, Any]:
    code = properties.get("Code") or {}
    return {
        each: code[each]
        for each in ("S3Bucket", "S3Key", "S3ObjectVersion", "ImageUri")
        if each in code
    }


def _tags(given: Any) -> dict[str, str]:
    return {each["Key"]: str(each["Value"]) for each in given or ()}
