"""One CloudFormation stack: its state, its change sets, and the events of what is done to it.

Only what CloudFormation itself knows is here; what an fsdray stack is, and what is done in which
order, is in `deploy`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fsdray.backends.aws import border
from fsdray.errors import ServiceError

NESTED = "AWS::CloudFormation::Stack"
_FIRST, _LONGEST, _GROWTH = 0.05, 3.0, 1.3  # seconds between two looks
_CANCELLED = ("cancelled", "The following resource(s) failed")  # consequences, not reasons


@dataclass(frozen=True)
class Event:
    """What happened to one resource.

    Parameters
    ----------
    name, kind : of the resource, as in the template.
    status : as ``"CREATE_COMPLETE"``. reason : what CloudFormation says of it, or ``""``.
    """

    name: str
    kind: str
    status: str
    reason: str

    @property
    def is_done(self) -> bool:
        """Whether something was done to its end."""
        return self.status.endswith("_COMPLETE") and "ROLLBACK" not in self.status


Tell = Callable[[Event], None]


class Failed(ServiceError):
    """CloudFormation did not do it: which resources it could not make, and why."""


class CloudFormation:
    """A stack by its name, through a boto3 client.

    Parameters
    ----------
    tell : told of each event as it happens.
    """

    def __init__(self, client: Any, name: str, tell: Tell) -> None:
        self.name = name
        self._client = client
        self._tell = tell

    def describe(self) -> dict[str, Any] | None:
        """As CloudFormation describes it; None where there is none."""
        with border.crossing(f"looking for the stack {self.name!r}"):
            try:
                found = self._client.describe_stacks(StackName=self.name)["Stacks"][0]
            except self._client.exceptions.ClientError as error:
                if border.code_of(error) == "ValidationError" and "not exist" in str(error):
                    return None
                raise
        assert isinstance(found, dict)
        return None if found["StackStatus"] == "DELETE_COMPLETE" else found

    def resources(self) -> Iterator[tuple[str, str, str]]:
        """Name, type and physical id of all resources, those of nested stacks too."""
        yield from self._resources(self.name)

    def _resources(self, stack: str) -> Iterator[tuple[str, str, str]]:
        with border.crossing(f"listing the resources of {self.name!r}"):
            pages = self._client.get_paginator("list_stack_resources").paginate(StackName=stack)
            found = [each for page in pages for each in page["StackResourceSummaries"]]
        for each in found:
            if each["ResourceStatus"] == "DELETE_COMPLETE" or not each.get("PhysicalResourceId"):
                continue
            yield each["LogicalResourceId"], each["ResourceType"], each["PhysicalResourceId"]
            if each["ResourceType"] == NESTED:
                yield from self._resources(each["PhysicalResourceId"])

    def change(
        self,
        template: Mapping[str, str],
        parameters: Mapping[str, str],
        tags: Mapping[str, str],
        *,
        is_new: bool,
    ) -> bool:
        """Have it be as a template says, through a change set; whether anything had to be done.

        Parameters
        ----------
        template : its ``TemplateBody``, of up to 51,200 bytes, or its ``TemplateURL``.

        Raises
        ------
        Failed : and all is as it was.
        """
        change_set = f"fsdray-{time.time_ns()}"
        with border.crossing(f"changing the stack {self.name!r}"):
            seen = self._seen()
            made = self._client.create_change_set(
                StackName=self.name,
                ChangeSetName=change_set,
                ChangeSetType="CREATE" if is_new else "UPDATE",
                **template,
                Parameters=[
                    {"ParameterKey": key, "ParameterValue": value}
                    for key, value in parameters.items()
                ],
                Tags=[{"Key": key, "Value": value} for key, value in tags.items()],
                Capabilities=["CAPABILITY_IAM"],
            )
            arn = made["Id"]
            status, reason = self._settled_change_set(arn)
            if status == "FAILED":
                self._client.delete_change_set(ChangeSetName=arn)
                if "didn't contain changes" in reason or "No updates" in reason:
                    return False
                raise Failed(f"CloudFormation refuses the template of {self.name!r}: {reason}")
            self._client.execute_change_set(ChangeSetName=arn)
        self.wait(seen, wanted=("CREATE_COMPLETE", "UPDATE_COMPLETE"))
        return True

    def delete(self) -> None:
        """Delete it with all its resources.

        Raises
        ------
        Failed : something could not be deleted.
        """
        found = self.describe()
        if found is None:
            return
        seen = self._seen()
        with border.crossing(f"deleting the stack {self.name!r}"):
            self._client.delete_stack(StackName=found["StackId"])
        self.wait(seen, wanted=("DELETE_COMPLETE",), stack=found["StackId"])

    def roll_back_further(self) -> None:
        """Go on with an update's rollback that failed."""
        seen = self._seen()
        with border.crossing(f"going on with the rollback of {self.name!r}"):
            self._client.continue_update_rollback(StackName=self.name)
        self.wait(seen, wanted=("UPDATE_ROLLBACK_COMPLETE",))

    def wait(
        self, seen: set[str] | None = None, *, wanted: tuple[str, ...] = (), stack: str = ""
    ) -> str:
        """Wait until nothing is done to it any more; the status then.

        Parameters
        ----------
        seen : events that are old. wanted : a status other than these is an error.
        stack : its id: one that was deleted has no name.
        """
        known = self._seen() if seen is None else seen
        failures: list[Event] = []
        pause = _FIRST
        while True:
            with border.crossing(f"watching the stack {self.name!r}"):
                status = self._status(stack or self.name)
                for event in self._new_events(stack or self.name, known):
                    self._tell(event)
                    if event.status.endswith("_FAILED"):
                        failures.append(event)
            if not status.endswith("_IN_PROGRESS"):
                break
            time.sleep(pause)
            pause = min(_LONGEST, pause * _GROWTH)
        if wanted and status not in wanted:
            raise Failed(self._why(status, failures))
        return status

    def _status(self, stack: str) -> str:
        try:
            return str(self._client.describe_stacks(StackName=stack)["Stacks"][0]["StackStatus"])
        except self._client.exceptions.ClientError as error:
            if border.code_of(error) == "ValidationError" and "not exist" in str(error):
                return "DELETE_COMPLETE"
            raise

    def _settled_change_set(self, arn: str) -> tuple[str, str]:
        pause = _FIRST
        while True:
            told = self._client.describe_change_set(ChangeSetName=arn)
            status = str(told["Status"])
            if not status.endswith(("_PENDING", "_IN_PROGRESS")):
                return status, str(told.get("StatusReason", ""))
            time.sleep(pause)
            pause = min(_LONGEST, pause * _GROWTH)

    def _seen(self) -> set[str]:
        found = self.describe()
        if found is None:
            return set()
        with border.crossing(f"reading the events of {self.name!r}"):
            pages = self._client.get_paginator("describe_stack_events").paginate(
                StackName=found["StackId"]
            )
            return {each["EventId"] for page in pages for each in page["StackEvents"]}

    def _new_events(self, stack: str, seen: set[str]) -> list[Event]:
        """What happened since, the oldest first; in nested stacks too."""
        found: list[tuple[Any, Event]] = []
        waiting = [stack]
        for each in waiting:  # it grows as it is read
            for told in self._events(each, seen):
                event = Event(
                    told["LogicalResourceId"],
                    told["ResourceType"],
                    told["ResourceStatus"],
                    told.get("ResourceStatusReason", ""),
                )
                found.append((told["Timestamp"], event))
            waiting += [nested for nested in self._nested(each) if nested not in waiting]
        return [event for _, event in sorted(found, key=lambda pair: pair[0])]

    def _events(self, stack: str, seen: set[str]) -> Iterator[dict[str, Any]]:
        pages = self._client.get_paginator("describe_stack_events").paginate(StackName=stack)
        try:
            for page in pages:
                fresh = [each for each in page["StackEvents"] if each["EventId"] not in seen]
                seen |= {each["EventId"] for each in fresh}
                yield from fresh
                if len(fresh) < len(page["StackEvents"]):
                    return  # the newest come first
        except self._client.exceptions.ClientError as error:
            if "not exist" not in str(error):  # it has gone meanwhile
                raise

    def _nested(self, stack: str) -> list[str]:
        try:
            pages = self._client.get_paginator("list_stack_resources").paginate(StackName=stack)
            return [
                each["PhysicalResourceId"]
                for page in pages
                for each in page["StackResourceSummaries"]
                if each["ResourceType"] == NESTED and each.get("PhysicalResourceId")
            ]
        except self._client.exceptions.ClientError as error:
            if "not exist" not in str(error):
                raise
            return []

    def _why(self, status: str, failures: list[Event]) -> str:
        reasons = [
            f"{event.name} ({event.kind}): {event.reason}"
            for event in failures
            if event.reason and not any(each in event.reason for each in _CANCELLED)
        ]
        shown = "\n".join(f"  | {reason}" for reason in dict.fromkeys(reasons))
        return f"the stack {self.name!r} is {status}" + (f":\n{shown}" if shown else "")
