"""The control API: functions made, changed, published, reserved for, tagged and deleted.

Each operation is a method named after it that takes the request and gives status and body. How a
request finds its method is in `routes`; what runs the functions is in `scheduler`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsdray.testing.lambda_host.faults import conflict, constraint, invalid, not_found
from fsdray.testing.lambda_host.functions import (
    LATEST,
    Function,
    Version,
    configured,
    parse_name,
)
from fsdray.testing.lambda_host.limits import UNZIPPED, HostSettings
from fsdray.testing.lambda_host.packages import code_of
from fsdray.testing.lambda_host.scheduler import Scheduler

Json = dict[str, Any]
Reply = tuple[int, Json | None]

_CREATING = {
    "State": "Pending",
    "StateReason": "The function is being created.",
    "StateReasonCode": "Creating",
}
_UPDATING = {
    "LastUpdateStatus": "InProgress",
    "LastUpdateStatusReason": "The function is being created.",
    "LastUpdateStatusReasonCode": "Creating",
}
_UNRESERVED = 100  # executions that no reservation may take


@dataclass(frozen=True)
class Request:
    """A control request: what its path, its query and its body say."""

    path: Mapping[str, str]
    query: Mapping[str, str] = field(default_factory=dict)
    body: Json = field(default_factory=dict)
    tag_keys: tuple[str, ...] = ()


class Control:
    """The functions of a host by their names, and every operation on them."""

    def __init__(self, scheduler: Scheduler, settings: HostSettings, directory: Path) -> None:
        self._scheduler = scheduler
        self._settings = settings
        self._directory = directory
        self._functions: dict[str, Function] = {}

    # What an invocation needs.

    def find(self, given: str, qualifier: str | None = None) -> tuple[Function, Version]:
        """The function and the version that a name and a qualifier mean.

        Raises
        ------
        ApiFault : there is none.
        """
        name, qualifier = parse_name(given, qualifier)
        function = self._functions.get(name)
        version = function.version(qualifier) if function else None
        if function is None or version is None:
            arn = self._arn(name) + (f":{qualifier}" if qualifier else "")
            raise not_found(f"Function not found: {arn}")
        return function, version

    # Functions.

    async def create_function(self, request: Request) -> Reply:
        body = request.body
        name, _ = parse_name(str(body.get("FunctionName", "")))
        if name in self._functions:
            raise conflict(f"Function already exist: {name}")
        fields = configured(body)
        for required in ("handler", "runtime"):
            if required not in fields:
                raise invalid(
                    f"{required.capitalize()} is mandatory for functions created with a zip"
                )
        code = await self._code(body.get("Code") or {})
        if name in self._functions:  # made meanwhile by another request
            raise conflict(f"Function already exist: {name}")
        version = Version(name=name, arn=self._arn(name), number=LATEST, code=code, **fields)
        function = Function(version, tags=dict(body.get("Tags") or {}))
        self._functions[name] = function
        if body.get("Publish"):
            version = self._publish(function, None)
        return 201, version.configuration() | _CREATING

    async def update_function_code(self, request: Request) -> Reply:
        function, latest = self._latest(request)
        code = await self._code(request.body)
        if request.body.get("DryRun"):
            return 200, dataclasses.replace(latest, code=code).configuration()
        changes: Json = {"code": code}
        if request.body.get("Architectures"):
            changes["others"] = {**latest.others, "Architectures": request.body["Architectures"]}
        version = self._update(function, changes)
        if request.body.get("Publish"):
            version = self._publish(function, None)
        return 200, version.configuration() | _UPDATING

    async def update_function_configuration(self, request: Request) -> Reply:
        function, latest = self._latest(request)
        fields = configured(request.body)
        fields["others"] = {**latest.others, **fields["others"]}
        return 200, self._update(function, fields).configuration() | _UPDATING

    async def get_function(self, request: Request) -> Reply:
        function, version = self._named(request)
        told: Json = {
            "Configuration": version.configuration(),
            "Code": {"RepositoryType": "S3", "Location": version.code.path.as_uri()},
        }
        if function.tags:
            told["Tags"] = function.tags
        if function.reserved is not None:
            told["Concurrency"] = {"ReservedConcurrentExecutions": function.reserved}
        return 200, told

    async def get_function_configuration(self, request: Request) -> Reply:
        _, version = self._named(request)
        return 200, version.configuration()

    async def list_functions(self, request: Request) -> Reply:
        every = request.query.get("FunctionVersion") == "ALL"
        return 200, {
            "Functions": [
                version.configuration()
                for function in self._functions.values()
                for version in (function.versions if every else [function.latest])
            ]
        }

    async def delete_function(self, request: Request) -> Reply:
        function, version = self._named(request)
        if version.number != LATEST:
            del function.published[version.number]
            self._scheduler.retire(version)
            return 204, None
        del self._functions[version.name]
        self._scheduler.concurrency.reserve(version.name, None)
        for each in function.versions:
            self._scheduler.retire(each)
        return 204, None

    # Versions and aliases.

    async def publish_version(self, request: Request) -> Reply:
        function, latest = self._latest(request)
        wanted = request.body.get("CodeSha256")
        if wanted and wanted != latest.code.sha256:
            raise invalid(
                f"CodeSHA256 ({wanted}) is different from current CodeSHA256 in $LATEST "
                f"({latest.code.sha256}). Please try again with the CodeSHA256 in $LATEST."
            )
        return 201, self._publish(function, request.body.get("Description")).configuration()

    async def list_versions_by_function(self, request: Request) -> Reply:
        function, _ = self._named(request)
        return 200, {"Versions": [version.configuration() for version in function.versions]}

    async def create_alias(self, request: Request) -> Reply:
        function, latest = self._latest(request)
        name = str(request.body.get("Name"))
        if name in function.aliases:
            raise conflict(f"Alias already exists: {latest.arn}:{name}")
        return 201, self._set_alias(function, name, request.body)

    async def update_alias(self, request: Request) -> Reply:
        function, alias = self._alias(request)
        return 200, self._set_alias(function, alias["Name"], alias | request.body)

    async def get_alias(self, request: Request) -> Reply:
        return 200, self._alias(request)[1]

    async def delete_alias(self, request: Request) -> Reply:
        function, _ = self._named(request)
        function.aliases.pop(request.path["alias"], None)
        return 204, None

    async def list_aliases(self, request: Request) -> Reply:
        function, _ = self._named(request)
        return 200, {"Aliases": list(function.aliases.values())}

    # Concurrency, events, recursion.

    async def put_function_concurrency(self, request: Request) -> Reply:
        function, latest = self._latest(request)
        count = request.body.get("ReservedConcurrentExecutions")
        if not isinstance(count, int) or count < 0:
            raise constraint(
                count, "reservedConcurrentExecutions", "have value greater than or equal to 0"
            )
        concurrency = self._scheduler.concurrency
        least = min(_UNRESERVED, concurrency.account)
        if concurrency.unreserved + (function.reserved or 0) - count < least:
            raise invalid(
                "Specified ReservedConcurrentExecutions for function decreases account's "
                f"UnreservedConcurrentExecution below its minimum value of [{least}]."
            )
        function.reserved = count
        concurrency.reserve(latest.name, count)
        return 200, {"ReservedConcurrentExecutions": count}

    async def get_function_concurrency(self, request: Request) -> Reply:
        function, _ = self._named(request)
        if function.reserved is None:
            return 200, {}
        return 200, {"ReservedConcurrentExecutions": function.reserved}

    async def delete_function_concurrency(self, request: Request) -> Reply:
        function, latest = self._latest(request)
        function.reserved = None
        self._scheduler.concurrency.reserve(latest.name, None)
        return 204, None

    async def put_function_event_invoke_config(self, request: Request) -> Reply:
        return self._set_event_config(request, {})

    async def update_function_event_invoke_config(self, request: Request) -> Reply:
        _, _, config = self._event_config(request)
        return self._set_event_config(request, config)

    async def get_function_event_invoke_config(self, request: Request) -> Reply:
        _, _, config = self._event_config(request)
        return 200, config

    async def list_function_event_invoke_configs(self, request: Request) -> Reply:
        function, _ = self._named(request)
        return 200, {"FunctionEventInvokeConfigs": list(function.event_configs.values())}

    async def delete_function_event_invoke_config(self, request: Request) -> Reply:
        function, qualifier, _ = self._event_config(request)
        del function.event_configs[qualifier]
        return 204, None

    async def put_function_recursion_config(self, request: Request) -> Reply:
        function, _ = self._latest(request)
        wanted = request.body.get("RecursiveLoop")
        if wanted not in ("Allow", "Terminate"):
            raise constraint(wanted, "recursiveLoop", "satisfy enum value set: [Allow, Terminate]")
        function.recursion = wanted
        return 200, {"RecursiveLoop": wanted}

    async def get_function_recursion_config(self, request: Request) -> Reply:
        return 200, {"RecursiveLoop": self._named(request)[0].recursion}

    # The account, tags and policies.

    async def get_account_settings(self, request: Request) -> Reply:
        concurrency = self._scheduler.concurrency
        used = sum(v.code.size for f in self._functions.values() for v in f.versions)
        return 200, {
            "AccountLimit": {
                "TotalCodeSize": 80_530_636_800,
                "CodeSizeUnzipped": UNZIPPED,
                "CodeSizeZipped": 52_428_800,
                "ConcurrentExecutions": concurrency.account,
                "UnreservedConcurrentExecutions": concurrency.unreserved,
            },
            "AccountUsage": {"TotalCodeSize": used, "FunctionCount": len(self._functions)},
        }

    async def tag_resource(self, request: Request) -> Reply:
        self._named(request)[0].tags.update(request.body.get("Tags") or {})
        return 204, None

    async def untag_resource(self, request: Request) -> Reply:
        tags = self._named(request)[0].tags
        for key in request.tag_keys:
            tags.pop(key, None)
        return 204, None

    async def list_tags(self, request: Request) -> Reply:
        return 200, {"Tags": self._named(request)[0].tags}

    async def add_permission(self, request: Request) -> Reply:
        function, version = self._named(request)
        body = request.body
        sid = body.get("StatementId")
        if sid in function.statements:
            raise conflict(
                f"The statement id ({sid}) provided already exists. Please provide a new statement "
                "id, or remove the existing statement."
            )
        principal = str(body.get("Principal"))
        statement: Json = {
            "Sid": sid,
            "Effect": "Allow",
            "Principal": {"Service" if "." in principal else "AWS": principal},
            "Action": body.get("Action"),
            "Resource": version.arn,
        }
        if "SourceArn" in body:
            statement["Condition"] = {"ArnLike": {"AWS:SourceArn": body["SourceArn"]}}
        function.statements[str(sid)] = statement
        return 201, {"Statement": json.dumps(statement)}

    async def remove_permission(self, request: Request) -> Reply:
        function, _ = self._named(request)
        if function.statements.pop(request.path["sid"], None) is None:
            raise not_found(f"Statement {request.path['sid']} is not found in resource policy.")
        return 204, None

    async def get_policy(self, request: Request) -> Reply:
        function, version = self._named(request)
        if not function.statements:
            raise not_found("The resource you requested does not exist.")
        statements = list(function.statements.values())
        policy = {"Version": "2012-10-17", "Id": "default", "Statement": statements}
        return 200, {"Policy": json.dumps(policy), "RevisionId": version.revision}

    # How they do it.

    def _arn(self, name: str) -> str:
        return f"arn:aws:lambda:{self._settings.region}:{self._settings.account}:function:{name}"

    def _named(self, request: Request) -> tuple[Function, Version]:
        return self.find(request.path["name"], request.query.get("Qualifier"))

    def _latest(self, request: Request) -> tuple[Function, Version]:
        """The function that is to be changed, and its $LATEST."""
        function, _ = self._named(request)
        wanted = request.body.get("RevisionId")
        if wanted and wanted != function.latest.revision:
            raise invalid(
                "The Revision Id provided does not match the latest Revision Id. Call the "
                "GetFunction/GetAlias API to retrieve the latest Revision Id"
            )
        return function, function.latest

    async def _code(self, request: Json) -> Any:
        return await asyncio.to_thread(
            code_of, request, self._directory, self._settings.endpoint_url
        )

    def _update(self, function: Function, changes: Json) -> Version:
        before = function.latest
        function.latest = before.changed(**changes)
        self._scheduler.retire(before)
        return function.latest

    def _publish(self, function: Function, description: str | None) -> Version:
        latest = function.latest
        last = next(reversed(function.published.values()), None)
        if last is not None and last.is_same_as(latest):
            return last
        others = dict(latest.others)
        if description is not None:
            others["Description"] = description
        function.count += 1
        version = latest.changed(number=str(function.count), others=others)
        function.published[version.number] = version
        return version

    def _set_alias(self, function: Function, name: str, given: Json) -> Json:
        number = str(given.get("FunctionVersion"))
        latest = function.latest
        if given.get("RoutingConfig"):
            raise invalid("RoutingConfig: the local Lambda host sends all calls to one version")
        if number != LATEST and number not in function.published:
            raise not_found(f"Function not found: {latest.arn}:{number}")
        function.aliases[name] = {
            "AliasArn": f"{latest.arn}:{name}",
            "Name": name,
            "FunctionVersion": number,
            "Description": given.get("Description", ""),
            "RevisionId": str(uuid.uuid4()),
        }
        return function.aliases[name]

    def _alias(self, request: Request) -> tuple[Function, Json]:
        function, _ = self._named(request)
        alias = function.aliases.get(request.path["alias"])
        if alias is None:
            raise not_found(f"Alias not found: {function.latest.arn}:{request.path['alias']}")
        return function, alias

    def _event_config(self, request: Request) -> tuple[Function, str, Json]:
        function, version = self._named(request)
        qualifier = parse_name(request.path["name"], request.query.get("Qualifier"))[1] or LATEST
        config = function.event_configs.get(qualifier)
        if config is None:
            raise not_found(
                f"The function {version.arn}:{qualifier} doesn't have an EventInvokeConfig"
            )
        return function, qualifier, config

    def _set_event_config(self, request: Request, before: Json) -> Reply:
        function, version = self._named(request)
        body = request.body
        destinations = body.get("DestinationConfig") or {}
        if any((destinations.get(when) or {}).get("Destination") for when in destinations):
            raise invalid("DestinationConfig: the local Lambda host sends results nowhere")
        for name, low, high in (
            ("MaximumRetryAttempts", 0, 2),
            ("MaximumEventAgeInSeconds", 60, 21_600),
        ):
            value = body.get(name)
            if value is not None and not low <= value <= high:
                raise constraint(value, name, f"have value from {low} to {high}")
        given = {k: v for k, v in body.items() if k.startswith("Maximum") and v is not None}
        qualifier = parse_name(request.path["name"], request.query.get("Qualifier"))[1] or LATEST
        function.event_configs[qualifier] = {
            **before,
            **given,
            "FunctionArn": f"{version.arn}:{qualifier}",
            "LastModified": time.time(),
            "DestinationConfig": {"OnSuccess": {}, "OnFailure": {}},
        }
        return 200, function.event_configs[qualifier]
