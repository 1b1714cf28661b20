"""Which operation of the Lambda API a method and a path mean.

The paths are those of the service's own model, dates and all.
"""

from __future__ import annotations

import re

from fsdray.testing.lambda_host.faults import ApiFault

_FUNCTION = "/2015-03-31/functions/{name}"
_EVENTS = "/2019-09-25/functions/{name}/event-invoke-config"
_TAGS = "/2017-03-31/tags/{name}"
_RECURSION = "/2024-08-31/functions/{name}/recursion-config"

_OPERATIONS = [
    ("POST", "/2015-03-31/functions", "CreateFunction"),
    ("GET", "/2015-03-31/functions", "ListFunctions"),
    ("GET", _FUNCTION, "GetFunction"),
    ("DELETE", _FUNCTION, "DeleteFunction"),
    ("GET", _FUNCTION + "/configuration", "GetFunctionConfiguration"),
    ("PUT", _FUNCTION + "/configuration", "UpdateFunctionConfiguration"),
    ("PUT", _FUNCTION + "/code", "UpdateFunctionCode"),
    ("POST", _FUNCTION + "/versions", "PublishVersion"),
    ("GET", _FUNCTION + "/versions", "ListVersionsByFunction"),
    ("POST", _FUNCTION + "/aliases", "CreateAlias"),
    ("GET", _FUNCTION + "/aliases", "ListAliases"),
    ("GET", _FUNCTION + "/aliases/{alias}", "GetAlias"),
    ("PUT", _FUNCTION + "/aliases/{alias}", "UpdateAlias"),
    ("DELETE", _FUNCTION + "/aliases/{alias}", "DeleteAlias"),
    ("POST", _FUNCTION + "/policy", "AddPermission"),
    ("GET", _FUNCTION + "/policy", "GetPolicy"),
    ("DELETE", _FUNCTION + "/policy/{sid}", "RemovePermission"),
    ("PUT", "/2017-10-31/functions/{name}/concurrency", "PutFunctionConcurrency"),
    ("DELETE", "/2017-10-31/functions/{name}/concurrency", "DeleteFunctionConcurrency"),
    ("GET", "/2019-09-30/functions/{name}/concurrency", "GetFunctionConcurrency"),
    ("PUT", _EVENTS, "PutFunctionEventInvokeConfig"),
    ("POST", _EVENTS, "UpdateFunctionEventInvokeConfig"),
    ("GET", _EVENTS, "GetFunctionEventInvokeConfig"),
    ("DELETE", _EVENTS, "DeleteFunctionEventInvokeConfig"),
    ("GET", _EVENTS + "/list", "ListFunctionEventInvokeConfigs"),
    ("PUT", _RECURSION, "PutFunctionRecursionConfig"),
    ("GET", _RECURSION, "GetFunctionRecursionConfig"),
    ("GET", "/2016-08-19/account-settings", "GetAccountSettings"),
    ("POST", _TAGS, "TagResource"),
    ("DELETE", _TAGS, "UntagResource"),
    ("GET", _TAGS, "ListTags"),
]
_ROUTES = [
    (method, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path) + "/?"), operation)
    for method, path, operation in _OPERATIONS
]


def find_route(method: str, path: str) -> tuple[str, dict[str, str]]:
    """The operation's name, and what stands in the path's variable places.

    Raises
    ------
    ApiFault : this host has no such operation.
    """
    for its_method, pattern, operation in _ROUTES:
        if its_method == method and (match := pattern.fullmatch(path)):
            return operation, match.groupdict()
    raise ApiFault(
        404, "UnknownOperationException", f"the local Lambda host has no {method} {path}"
    )
