"""What ministack does otherwise than AWS, and fsdray depends on, amended while it runs.

It runs in ministack's process, with nothing but the standard library, and knows the insides of
the one version that `packages` names. `test_emulator` tests each amendment.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
from typing import Any

_SNS_BYTES = 262_144  # of a message, and of a batch (SNS quotas)


def hand_functions_over(mirror: Any, url: str) -> None:
    """Have CloudFormation make functions in the Lambda host: `mirror` makes them."""
    provisioners = importlib.import_module("ministack.services.cloudformation.provisioners")
    stacks: Any = importlib.import_module("ministack.services.cloudformation.stacks")
    before = stacks._runs_on_worker_thread

    def runs_on_worker_thread(kind: str) -> bool:
        # The host fetches the code from S3: from here. So nothing here may wait for it.
        return bool(kind.startswith("AWS::Lambda::") or before(kind))

    stacks._runs_on_worker_thread = runs_on_worker_thread
    provisioners._RESOURCE_HANDLERS.update(mirror.handlers(url, provisioners._physical_name))


def keep_attributes_of_nested_stacks() -> None:
    """Have what an update of a nested stack leaves alone keep its attributes."""
    package: Any = importlib.import_module("ministack.services.cloudformation")
    provisioners: Any = importlib.import_module("ministack.services.cloudformation.provisioners")
    update = provisioners._update_resource

    def update_resource(
        kind: str, made: str, old: Any, new: Any, stack: str, logical: str = "", known: Any = None
    ) -> Any:
        if known is None:
            resources = package._stacks.get(stack, {}).get("_resources", {})
            known = resources.get(logical, {}).get("Attributes")
        return update(kind, made, old, new, stack, logical, known)

    provisioners._update_resource = update_resource


def wake_receivers(loop: asyncio.AbstractEventLoop) -> None:
    """Have a message wake those who wait for one, where ministack would look every 100 ms."""
    sqs: Any = importlib.import_module("ministack.services.sqs")
    sns: Any = importlib.import_module("ministack.services.sns")
    arrived = asyncio.Event()

    def wake() -> None:
        nonlocal arrived
        arrived.set()
        arrived = asyncio.Event()

    class Sleep:
        """asyncio, but that a sleep ends with the next message."""

        def __getattr__(self, name: str) -> Any:
            return getattr(asyncio, name)

        async def sleep(self, seconds: float) -> None:
            with contextlib.suppress(TimeoutError):  # as long as it would have been
                await asyncio.wait_for(arrived.wait(), seconds)

    class Wake:
        """ministack's own event, which is set for each message."""

        def __init__(self, event: Any) -> None:
            self._event = event

        def set(self) -> None:
            self._event.set()
            loop.call_soon_threadsafe(wake)

    sqs.asyncio = Sleep()
    for module in (sqs, sns):
        module.esm_wake = Wake(module.esm_wake)


def keep_queue_policies() -> None:
    """Have a queue admit topics only as its policy says, where ministack admits all.

    ministack has the rule, and keeps it only where it checks the permissions of all callers.
    """
    sqs: Any = importlib.import_module("ministack.services.sqs")
    evaluator = importlib.import_module("ministack.core.iam_evaluator")

    def allows(queue: str, service: str, source: str, account: str) -> bool:
        found = sqs._queue_by_arn(queue)
        policy = found["attributes"].get("Policy") if found else None
        if not policy:
            return False
        asked = evaluator.EvalContext(
            principal_arn="*",
            principal_type="Service",
            principal_account="",
            action="sqs:SendMessage",
            resource_arn=queue,
            region=sqs.get_region(),
            service_context={"aws:sourcearn": source, "aws:sourceaccount": account},
        )
        decided = evaluator.evaluate_resource_policy(policy, asked, service=service)
        return bool(decided.decision == "Allow")

    sqs.queue_policy_allows = allows


def keep_binary_attributes() -> None:
    """Have a batch of SNS keep binary attributes, which ministack loses, and count their bytes."""
    sns: Any = importlib.import_module("ministack.services.sns")
    parse, publish_batch = sns._parse_batch_entries, sns._publish_batch

    def parse_batch_entries(params: Any) -> Any:
        entries = parse(params)
        for i, entry in enumerate(entries, 1):
            for j, attribute in enumerate(entry["message_attributes"].values(), 1):
                at = f"PublishBatchRequestEntries.member.{i}.MessageAttributes.entry.{j}.Value"
                if binary := sns._p(params, f"{at}.BinaryValue"):
                    attribute["BinaryValue"] = binary
                    del attribute["StringValue"]
        return entries

    def payload_size(message: str, attributes: Any) -> int:
        size = len((message or "").encode())
        for name, attribute in (attributes or {}).items():
            size += len(name.encode()) + len((attribute.get("DataType") or "").encode())
            size += len((attribute.get("StringValue") or "").encode())
            size += len(base64.b64decode(attribute.get("BinaryValue") or ""))
        return size

    def publish_small_batch(params: Any) -> Any:
        total = sum(
            payload_size(entry["message"], entry["message_attributes"])
            for entry in parse_batch_entries(params)
        )
        if total > _SNS_BYTES:
            return sns._error(
                "BatchRequestTooLong",
                "The length of all the messages put together is more than the limit",
                400,
            )
        return publish_batch(params)

    sns._parse_batch_entries = parse_batch_entries
    sns._message_payload_size = payload_size
    sns._publish_batch = publish_small_batch
