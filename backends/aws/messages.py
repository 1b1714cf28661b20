"""`fsdray.services.Messages` over SNS and SQS: topics that filter, and a queue for each rank slot.

A publish goes through the topic of its inboxes, or straight to the queue of a single one. Slots
are leased in `leases`; what keeps the queues clean is in `ledger`; requests are counted by
`clients`.
"""

from __future__ import annotations

import asyncio
import getpass
import math
import os
import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from random import random
from typing import Any

from fsdray.backends.aws import border
from fsdray.backends.aws.clients import Clients, sized
from fsdray.backends.aws.inboxes import BYTES, TARGETS, TEXT, Inbox, attributes, inbox_of, unpack
from fsdray.backends.aws.leases import KEEP, Leases, is_later
from fsdray.backends.aws.ledger import Ledger
from fsdray.backends.aws.stack import Stack
from fsdray.backends.aws.store import PoolObject
from fsdray.errors import ServiceError, Throttled
from fsdray.services import (
    Delivery,
    Message,
    MessageLimits,
    is_direct,
    units,
)

_PAUSE = 0.1, 5.0  # seconds before the failed entries of a batch go again: first, longest
_TRIES = 10  # of one entry, about 25 s in all
_NO_QUEUE = ("NonExistentQueue", "QueueDoesNotExist")
_AT_ONCE = 16  # queues that are emptied at one time

Entry = dict[str, Any]
Answer = Mapping[str, Any]


class AwsMessages:
    """Messages of one session from this process.

    Parameters
    ----------
    clients : of this process. stack : where topics and queues are.
    leases : of this process's own; inboxes that others leased are used all the same.
    """

    def __init__(
        self,
        clients: Clients,
        stack: Stack,
        leases: Leases,
        limits: MessageLimits,
    ) -> None:
        self._clients = clients
        self._stack = stack
        self._leases = leases
        self._open: set[Inbox] = set()  # leased by this process, and not released
        self.ledger = Ledger()
        self.limits = limits
        self.near = None

    @classmethod
    def of_stack(
        cls,
        clients: Clients,
        stack: Stack,
        holder: str,
        keep: float = KEEP,
        quiet: Callable[[], Awaitable[None]] | None = None,
    ) -> AwsMessages:
        """Those of one process.

        Parameters
        ----------
        holder : its name in the pool. keep : as `Leases` says.
        quiet : awaited before queues are emptied: a rank that was given up may be sending yet.
        """
        limits = MessageLimits(inboxes=stack.slots, more_inboxes="run fsdray deploy --slots {}")

        async def empty(slots: Sequence[int]) -> None:
            if quiet is not None:
                await quiet()
            await purge(clients, stack, slots)

        leases = Leases(
            PoolObject(clients, stack.bucket),
            slots=stack.slots,
            fanout=limits.fanout,
            session=holder,
            who=_who(),
            purge=empty,
            keep=keep,
            stack=stack.name,
        )
        return cls(clients, stack, leases, limits)

    async def lease(self, count: int) -> list[str]:
        lease = await self._leases.lease(count)
        inboxes = [Inbox(slot, lease.epoch) for slot in lease.slots]
        self._open.update(inboxes)
        return [str(inbox) for inbox in inboxes]

    async def release(self, inboxes: Sequence[str], *, is_broken: bool = False) -> None:
        named = [inbox_of(name) for name in inboxes]
        doubtful = {inbox.slot for inbox in named if self.ledger.settle(inbox) or is_broken}
        self._open.difference_update(named)
        await self._leases.release(named, doubtful)

    async def publish(self, messages: Sequence[Message]) -> None:
        self.limits.check_publish(messages)
        named = [(message, self._inboxes(message.inboxes)) for message in messages]
        if is_direct(messages):
            (inbox,) = named[0][1]
            await self._send(inbox, [message for message, _ in named])
            return
        topics: defaultdict[int, list[tuple[Message, list[Inbox]]]] = defaultdict(list)
        for message, inboxes in named:
            by_topic: defaultdict[int, list[Inbox]] = defaultdict(list)
            for inbox in inboxes:
                by_topic[inbox.slot // self.limits.fanout].append(inbox)
            for topic, some in by_topic.items():
                topics[topic].append((message, some))
        await asyncio.gather(*(self._publish(topic, some) for topic, some in topics.items()))

    async def receive(self, inbox: str, *, wait: float) -> list[Delivery]:
        self.limits.check_wait(wait)
        mine = self._inboxes((inbox,))[0]
        clock = asyncio.get_running_loop().time
        deadline = clock() + wait
        while True:
            found = await self._poll(mine, max(0.0, deadline - clock()))
            deliveries = await self._mine(mine, found)
            if deliveries or not found:
                return deliveries

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        self.limits.check_acknowledge(deliveries)
        inbox = inbox_of(deliveries[0].inbox)
        receipts = [delivery.receipt.split(" ", 1) for delivery in deliveries]
        await self._delete(inbox, [handle for _, handle in receipts])
        self.ledger.took(inbox, [message for message, _ in receipts])

    async def close(self) -> None:
        """Give back what this process has leased."""
        await self._leases.close()

    async def close_for_the_dead(self) -> None:
        """Give back what calls of this session had leased that died."""
        await self._leases.give_back_for_the_dead()

    def settle_own(self, told: Iterable[Sequence[int]]) -> None:
        """Add what a call that replied knew of inboxes (`Ledger.take`), if they are of ours."""
        self.ledger.add(told)
        self.ledger.keep(self._open)

    # Sending

    async def _publish(self, topic: int, messages: Sequence[tuple[Message, list[Inbox]]]) -> None:
        sns = await self._clients.get("sns")
        arn = self._stack.topics[topic]
        entries = {
            str(i): {
                "Id": str(i),
                "Message": TEXT,
                "MessageAttributes": attributes(message.body, inboxes),
            }
            for i, (message, inboxes) in enumerate(messages)
        }

        async def send(some: Sequence[Entry]) -> Answer:
            sizes = _billed(messages[int(each["Id"])] for each in some)
            with sized(publish_units=units(sizes), publish_bytes=sizes):
                answer: Answer = await sns.publish_batch(
                    TopicArn=arn, PublishBatchRequestEntries=list(some)
                )
                return answer

        with border.crossing(f"publishing {len(entries)} messages"):
            await self._sent(entries, send, [inboxes for _, inboxes in messages])

    async def _send(self, inbox: Inbox, messages: Sequence[Message]) -> None:
        sqs = await self._clients.get("sqs")
        entries = {
            str(i): {
                "Id": str(i),
                "MessageBody": TEXT,
                "MessageAttributes": attributes(message.body, [inbox]),
            }
            for i, message in enumerate(messages)
        }

        async def send(some: Sequence[Entry]) -> Answer:
            sizes = _billed((messages[int(each["Id"])], [inbox]) for each in some)
            with sized(send_units=units(sizes), send_bytes=sizes):
                answer: Answer = await sqs.send_message_batch(
                    QueueUrl=self._queue(inbox.slot), Entries=list(some)
                )
                return answer

        with border.crossing(f"sending {len(entries)} messages"):
            await self._sent(entries, send, [[inbox]] * len(messages))

    async def _sent(
        self,
        entries: Mapping[str, Entry],
        send: Callable[[Sequence[Entry]], Awaitable[Answer]],
        targets: Sequence[list[Inbox]],
    ) -> None:
        every = [inbox for inboxes in targets for inbox in inboxes]
        try:
            answers = await in_full(entries, send, "messages")
        except BaseException:
            self.ledger.doubt(every)
            raise
        for inboxes in targets:
            self.ledger.sent(inboxes)
        if len(answers) > 1 or any(map(_was_repeated, answers)):
            self.ledger.doubt(every)  # a copy of what was sent before may have been accepted

    # Receiving

    async def _poll(self, inbox: Inbox, wait: float) -> list[dict[str, Any]]:
        """One receive; SQS waits whole seconds."""
        sqs = await self._clients.get("sqs")
        try:
            with border.crossing(f"receiving from slot {inbox.slot}"):
                answer = await sqs.receive_message(
                    QueueUrl=self._queue(inbox.slot),
                    MaxNumberOfMessages=self.limits.receive_messages,
                    WaitTimeSeconds=min(math.ceil(wait), int(self.limits.wait)),
                    MessageAttributeNames=[BYTES, TARGETS],  # as many bytes as are billed
                )
        except BaseException:
            # SQS may not see that nobody listens, and deliver to nobody.
            self.ledger.doubt([inbox])
            raise
        if _was_repeated(answer):
            self.ledger.doubt([inbox])
        found: list[dict[str, Any]] = answer.get("Messages") or []
        size = sum(_size(message) for message in found)
        self._clients.count("receive_units", units(size))
        return found

    async def _mine(self, inbox: Inbox, found: Sequence[Mapping[str, Any]]) -> list[Delivery]:
        """The deliveries among what came that are for this lease; the rest is got rid of."""
        deliveries: list[Delivery] = []
        stale: list[str] = []
        later: list[str] = []
        for message in found:
            handle: str = message["ReceiptHandle"]
            read = unpack(_bytes(message))
            epochs = [each.epoch for each in read[0] if each.slot == inbox.slot] if read else []
            if read is not None and inbox.epoch in epochs:
                receipt = f"{message['MessageId']} {handle}"
                deliveries.append(Delivery(str(inbox), receipt, read[1], _size(message)))
            elif any(is_later(epoch, inbox.epoch) for epoch in epochs):
                later.append(handle)
            else:
                stale.append(handle)
        if later:
            await self._put_back(inbox, later)
            raise ServiceError(
                f"the lease of inbox {inbox} is over: its session was not heard of for too long, "
                "and another one has the slot now"
            )
        if stale:
            await self._delete(inbox, stale)
        return deliveries

    async def _put_back(self, inbox: Inbox, handles: Sequence[str]) -> None:
        """Others' messages are theirs to take, at once."""
        sqs = await self._clients.get("sqs")
        with border.crossing(f"putting messages back into slot {inbox.slot}"):
            await asyncio.gather(
                *(
                    sqs.change_message_visibility(
                        QueueUrl=self._queue(inbox.slot), ReceiptHandle=handle, VisibilityTimeout=0
                    )
                    for handle in handles
                ),
                return_exceptions=True,  # they come back by themselves, if later
            )

    async def _delete(self, inbox: Inbox, handles: Sequence[str]) -> None:
        sqs = await self._clients.get("sqs")
        entries = {
            str(i): {"Id": str(i), "ReceiptHandle": handle} for i, handle in enumerate(handles)
        }

        async def delete(some: Sequence[Entry]) -> Answer:
            answer: Answer = await sqs.delete_message_batch(
                QueueUrl=self._queue(inbox.slot), Entries=list(some)
            )
            return answer

        with border.crossing(f"deleting messages of slot {inbox.slot}"):
            await in_full(entries, delete, "receipts")

    # Names

    def _inboxes(self, names: Iterable[str]) -> list[Inbox]:
        inboxes = [inbox_of(name) for name in names]
        for inbox in inboxes:
            ended = self._leases.made(inbox.epoch) and inbox not in self._open
            if ended or inbox.slot >= self._stack.slots:
                raise ServiceError(f"no inbox {str(inbox)!r} is leased: its gang has ended")
        return inboxes

    def _queue(self, slot: int) -> str:
        return queue_url(self._stack, slot)


def _who() -> str:
    """This process, for people."""
    function = os.environ.get("AWS_LAMBDA_FUNCTION_NAME")
    if function is not None:
        return f"a call of {function}"
    return f"{getpass.getuser()}@{socket.gethostname()} (process {os.getpid()})"


def queue_url(stack: Stack, slot: int) -> str:
    """The queue of a slot."""
    return f"{stack.queues}{slot:04}"


async def purge(clients: Clients, stack: Stack, slots: Sequence[int]) -> None:
    """Empty the queues of slots; SQS takes up to a minute for it."""
    sqs = await clients.get("sqs")
    few = asyncio.Semaphore(_AT_ONCE)

    async def empty(slot: int) -> None:
        async with few:
            try:
                with border.crossing(f"emptying slot {slot}"):
                    await sqs.purge_queue(QueueUrl=queue_url(stack, slot))
            except ServiceError as error:
                # Somebody else did it within the last minute: what came since has had its lease.
                # Or the queue was removed, with all that was in it.
                code = border.code_of(error.__cause__ or error)
                if not any(each in code for each in ("PurgeQueueInProgress", *_NO_QUEUE)):
                    raise

    await asyncio.gather(*map(empty, slots))


async def in_full(
    entries: Mapping[str, Entry],
    send: Callable[[Sequence[Entry]], Awaitable[Answer]],
    what: str,
) -> list[Answer]:
    """Send a batch until all its entries were accepted, those again that failed; the answers.

    Raises
    ------
    ServiceError
        an entry is wrong in itself.
    Throttled
        entries failed however often they were sent.
    """
    left = dict(entries)
    answers: list[Answer] = []
    pause, longest = _PAUSE
    failed: list[Mapping[str, Any]] = []
    for _ in range(_TRIES):
        answer = await send(list(left.values()))
        answers.append(answer)
        failed = list(answer.get("Failed") or ())
        # What the answer does not name as accepted was not.
        accepted = {each["Id"] for each in answer.get("Successful") or ()}
        left = {name: entry for name, entry in left.items() if name not in accepted}
        if not left:
            return answers
        for each in failed:
            if each.get("SenderFault"):
                raise ServiceError(
                    f"AWS refused {len(left)} of {len(entries)} {what}: {each.get('Code')}: "
                    f"{each.get('Message')}"
                )
        await asyncio.sleep(pause * (0.5 + random()))
        pause = min(2 * pause, longest)
    why = f" ({failed[0].get('Code')}: {failed[0].get('Message')})" if failed else ""
    raise Throttled(f"{len(left)} of {len(entries)} {what} failed {_TRIES} times{why}: do less")


def _billed(messages: Iterable[tuple[Message, list[Inbox]]]) -> int:
    return sum(
        Message(message.body, tuple(map(str, inboxes))).billed for message, inboxes in messages
    )


def _bytes(message: Mapping[str, Any]) -> bytes:
    attribute = (message.get("MessageAttributes") or {}).get(BYTES) or {}
    return bytes(attribute.get("BinaryValue") or b"")


def _size(message: Mapping[str, Any]) -> int:
    """What of a message is billed where it is received; one that is not ours, by its bytes."""
    read = unpack(_bytes(message))
    if read is None:
        return len(message.get("Body", ""))
    return Message(read[1], tuple(map(str, read[0]))).billed


def _was_repeated(answer: Answer) -> bool:
    """Whether the client sent a request again, which may have been done the first time."""
    return bool((answer.get("ResponseMetadata") or {}).get("RetryAttempts"))
