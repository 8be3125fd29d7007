"""What a platform tells somebody who looks at its tasks (a live strace). Nobody looks by default."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trapline.platform.tracee import Tracee


class Watch:
    """Every method is called while the task stands at the stop that it is about. None may raise.

    Entries and exits of calls come by `Engine.on_trap`, for tasks under trap_all.
    """

    def returned(self, t: Tracee, value: int) -> None:
        """A call that the host executed for the sentry has ended; a restart may still be hidden."""

    def answered(self, t: Tracee, value: int) -> None:
        """At a signal or event stop a call was given the result that the guest will see."""

    def delivered(self, t: Tracee, raw: bytes) -> None:
        """A signal is being delivered, with this siginfo_t."""

    def ignored(self, t: Tracee, raw: bytes) -> None:
        """A signal that the host made came to nothing."""

    def stopped(self, t: Tracee, signo: int) -> None:
        """A job-control stop."""

    def executed(self, t: Tracee, former_tid: int) -> None:
        """A program was executed, by the thread that had this id."""

    def ended(self, t: Tracee, status: int) -> None:
        """A task is dead."""


NOBODY = Watch()
