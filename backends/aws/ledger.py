"""Whether anything waits in an inbox whose gang has ended, known without asking.

Each process counts what it sent to an inbox and what it took out of it; counts go up to the
caller with the reply of a call. Where they come to nothing, nothing is left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fsdray.backends.aws.inboxes import Inbox


@dataclass
class _Account:
    balance: int = 0  # sent, less taken
    is_doubtful: bool = False
    taken: set[str] = field(default_factory=set)  # ids of messages that this process took


class Ledger:
    """Counts of one process; those of calls that it made are added when they reply."""

    def __init__(self) -> None:
        self._accounts: defaultdict[Inbox, _Account] = defaultdict(_Account)

    def sent(self, inboxes: Iterable[Inbox]) -> None:
        """A message was accepted for these."""
        for inbox in inboxes:
            self._accounts[inbox].balance += 1

    def took(self, inbox: Inbox, messages: Iterable[str]) -> None:
        """Messages of these ids will not come again; one that was taken before is no other."""
        account = self._accounts[inbox]
        new = set(messages) - account.taken
        account.taken |= new
        account.balance -= len(new)

    def doubt(self, inboxes: Iterable[Inbox]) -> None:
        """Nobody knows what became of a request about these."""
        for inbox in inboxes:
            self._accounts[inbox].is_doubtful = True

    def settle(self, inbox: Inbox) -> bool:
        """Whether something may wait in an inbox whose gang has ended; its account is closed.

        More may have been taken than this knows to be sent: of a named group, whose ranks reply to
        different callers.
        """
        account = self._accounts.pop(inbox, None)
        return account is not None and (account.is_doubtful or account.balance > 0)

    def take(self) -> list[list[int]]:
        """What is known so far, for the caller; it is then the caller's to know."""
        accounts, self._accounts = self._accounts, defaultdict(_Account)
        return [
            [inbox.slot, inbox.epoch, account.balance, int(account.is_doubtful)]
            for inbox, account in accounts.items()
            if account.balance or account.is_doubtful
        ]

    def add(self, told: Iterable[Sequence[int]]) -> None:
        """What a call that replied knew."""
        for slot, epoch, balance, is_doubtful in told:
            account = self._accounts[Inbox(slot, epoch)]
            account.balance += balance
            account.is_doubtful = account.is_doubtful or bool(is_doubtful)

    def keep(self, inboxes: Iterable[Inbox]) -> None:
        """Forget all others: their gangs are not this process's."""
        kept = [inbox for inbox in inboxes if inbox in self._accounts]
        accounts = {inbox: self._accounts[inbox] for inbox in kept}
        self._accounts = defaultdict(_Account, accounts)
