"""trapline as a job of the caller's shell: it stops when the first guest stops, and goes on with it.

The shell sees nothing of the guests. It waits for trapline, gives the terminal to trapline's process group, and
continues that group. So, as su(1) and sudo(8) do without a terminal of their own, the sentry takes the terminal from
the guests' group, stops by the signal that stopped the first guest, and once it is continued gives the terminal back,
if the shell gave it to trapline (`fg` does, `bg` does not), and passes the SIGCONT on.

Sources: "Implementing a Job Control Shell" of the GNU C Library's manual, signal(7), n_tty's and
__tty_check_change's rules for SIGTTIN and SIGTTOU in Linux drivers/tty.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from trapline.platform.caller_terminal import SHARED, CallerTerminal, is_gone
from trapline.platform.signal_descriptor import SI_KERNEL
from trapline.sentry.kernel import family, tty
from trapline.sentry.kernel.state import SigInfo
from trapline.sentry.protocol import Gone

if TYPE_CHECKING:
    from trapline.platform.engine import Engine
    from trapline.platform.pump import Pump

_BACKGROUND = (signal.SIGTTIN, signal.SIGTTOU)


class JobControl:
    """See the module. `root` is the first guest, a host id; `own_group` says how its process group was made."""

    def __init__(self, terminal: CallerTerminal, pump: Pump, root: int, own_group: str) -> None:
        self.terminal = terminal
        self.own_group = own_group != SHARED
        self._pump = pump
        self._engine: Engine = pump.engine
        self._kernel = pump.engine.kernel
        self._root = root
        self._stopped = 0  # the signal that the first guest was stopped by and that we have not followed yet
        self._asked = False  # it was our caller that sent that signal
        self._to_return = 0  # the guests' group that had the terminal when we stopped; 0: the first guest's
        self._last: set[int] = set()  # the guests' groups when the first guest ended
        self._kernel.on_root_stop = self._root_stopped
        pump.after_stops = self._after_stops

    # -- the foreground
    def begin(self) -> None:
        """The first guest is known and about to run: its group takes the foreground that trapline's has."""
        if not self.terminal.controlling:
            return
        root = self._kernel.state.groups[self._kernel.state.root_tgid]
        tty.attach_host_terminal(self._kernel, root, self.terminal.device, 0)
        if self.own_group:
            try:
                # A key that stopped trapline while it set up stopped the guest as well, and the SIGCONT of the shell
                # did not reach its group.
                os.kill(self._root, signal.SIGCONT)
            except ProcessLookupError:
                return
            if self.terminal.foreground() == self.terminal.group:
                self._hand_over()

    def begin_again(self, settings: bytes) -> None:
        """In place of `begin`: all guests stand before they go on from a checkpoint, which was taken on another
        terminal, or on none. `settings` are those that the foreground group had made there; b"": it had not the
        terminal."""
        terminal = self.terminal
        if not terminal.controlling:
            return
        state = self._kernel.state
        before = next((found for found in state.ttys.values() if not found.sid and found.number & tty.OUTSIDE), None)
        group = 0
        if before is not None:
            tty.moved(self._kernel, before, terminal.device)
            group = before.foreground
        else:
            tty.attach_host_terminal(self._kernel, state.groups[state.root_tgid], terminal.device, 0)
        self._to_return = next((host for host, pgid in self._groups().items() if group and pgid == group), 0)
        if terminal.foreground() != terminal.group:
            self._note_foreground()
            return
        self._hand_over()
        if settings:
            terminal.set_up(settings)
        # The window may be another one, and it is empty: who draws on it draws.
        for member in family.members(state, tty.foreground(self._kernel, terminal.device) or self._root_group()):
            self._send([member.tgid], signal.SIGWINCH)

    def settings(self) -> bytes:
        """For a checkpoint: struct termios2 of the terminal, where a guest's group has it; else b""."""
        terminal = self.terminal
        owner = terminal.foreground()
        mine = owner in self._groups() or (owner == terminal.group and not self.own_group)
        return terminal.all_settings() if mine else b""

    def _root_group(self) -> int:
        state = self._kernel.state
        return state.groups[state.root_tgid].pgid

    def _hand_over(self) -> None:
        """The terminal is our group's: it is the guests' that had it when we stopped, or the first guest's."""
        group, self._to_return = self._to_return, 0
        if not (group and self.terminal.give(group)) and self.own_group:
            self.terminal.give(self._root)
        self._note_foreground()

    def _note_foreground(self) -> None:
        """The kernel knows whose the terminal is: after somebody outside may have moved it."""
        group = self._groups().get(self.terminal.foreground(), 0)
        tty.foreground_moved(self._kernel, self.terminal.device, group)

    def _groups(self) -> dict[int, int]:
        """The guests' process groups, without one that they share with us: host id, id in the sandbox."""
        found = {}
        for t in list(self._engine.tracees.values()):
            if t.task is None:
                continue
            try:
                group = os.getpgid(t.host_group)
            except OSError:
                continue
            if group != self.terminal.group:
                found[group] = self._kernel.group(t.task).pgid
        return found

    def closing(self) -> None:
        """The first guest has ended; what is left of the sandbox is about to be killed."""
        self._last = {self._root, *self._groups()}

    def end(self, killed: bool) -> None:
        """All guests are gone. `killed`: the first by a signal, so that it could not set the terminal right itself.

        A shell that sees an exit status of ours does not look at the terminal. Where the caller's shell has taken
        the terminal already, or never gave it, it is the shell's.
        """
        terminal = self.terminal
        owner = terminal.foreground()
        if owner > 0 and owner != terminal.group:
            if owner not in self._last and not is_gone(owner):
                return
            terminal.give(terminal.group)
        if killed:
            terminal.restore()

    # -- signals to trapline
    def key(self, number: int) -> None:
        """The host signalled trapline's group: a key of the terminal, or a hangup.

        Guests in that group got it by themselves. One with a group of its own did not, and the terminal is ours only
        because the shell gave it to us while the guest ran (`fg` of a job that is not stopped says nothing).
        """
        if not self.own_group:
            return
        if self.terminal.foreground() == self.terminal.group:
            self._hand_over()
        if number == signal.SIGHUP:  # the session leader's alone
            self._send([self._kernel.state.root_tgid], number)
        else:
            self._send(self._group_of_root(), number)

    def stop(self, number: int) -> None:
        """Somebody sent trapline a stop signal: the first guest's, and what it does we follow at once."""
        self._asked = True
        self._send([self._kernel.state.root_tgid], number)

    def continued(self) -> None:
        """SIGCONT has come: after a stop, or to no purpose."""
        self._serve_stops()  # a stop that began before is one that this ends
        if self.terminal.foreground() == self.terminal.group:
            self._hand_over()
        else:
            self._note_foreground()
        groups = self._kernel.state.groups
        members = self._group_of_root()
        if not self.own_group:
            # They had the SIGCONT too, if it was the shell's. One for trapline alone is for those that stand.
            members = [tgid for tgid in members if groups[tgid].stop_signal]
        self._stopped, self._asked = 0, False
        self._send(members, signal.SIGCONT)

    def _group_of_root(self) -> list[int]:
        root = self._kernel.state.groups.get(self._kernel.state.root_tgid)
        return [group.tgid for group in family.members(self._kernel.state, root.pgid)] if root is not None else []

    def _send(self, members: list[int], number: int) -> None:
        for tgid in members:
            try:
                self._kernel.send_signal(tgid, SigInfo(signo=number, code=0))
            except (OSError, Gone):
                continue

    # -- following
    def _root_stopped(self, signo: int) -> None:
        self._stopped = signo

    def _after_stops(self) -> None:
        if self._stopped and self._may_follow():
            signo, self._stopped, self._asked = self._stopped, 0, False
            self._follow(signo)

    def _may_follow(self) -> bool:
        """A key's stop is followed at once: a member of the group that ignores it goes on, as natively, and the shell
        must know. A guest that was stopped by another one may be continued by it, who could not do that if we stood:
        so not before all of the group stands."""
        groups = self._kernel.state.groups
        root = groups.get(self._kernel.state.root_tgid)
        if root is None or not root.stop_signal or root.exit_status >= 0:
            self._stopped, self._asked = 0, False
            return False
        if self._asked or self._engine.root_stop_code == SI_KERNEL:
            return True
        return all(groups[tgid].stop_signal or groups[tgid].exit_status >= 0 for tgid in self._group_of_root())

    def _follow(self, signo: int) -> None:
        terminal = self.terminal
        owner = terminal.foreground()
        if self.own_group and owner == terminal.group and signo in _BACKGROUND:
            self.continued()  # it is no background job: the shell gave us the terminal while the guest ran
            return
        self._serve_stops()  # others of the group are stopped by the same key
        root = self._kernel.state.groups.get(self._kernel.state.root_tgid)
        if root is None or not root.stop_signal:
            return
        self._to_return = 0
        if owner in self._groups():
            self._to_return = owner
            terminal.give(terminal.group)
            self._note_foreground()
        _stop_by(signo)
        self.continued()

    def _serve_stops(self) -> None:
        after, self._pump.after_stops = self._pump.after_stops, lambda: None
        try:
            while self._pump.walk():
                pass
        finally:
            self._pump.after_stops = after


def _stop_by(number: int) -> None:
    """Stop this process; returns when it has been continued. Where its group is orphaned only SIGSTOP stops it, and
    nobody would continue it then: so it does not stop, and the guest goes on."""
    if number == signal.SIGSTOP:
        os.kill(os.getpid(), number)
    else:
        before = signal.signal(number, signal.SIG_DFL)
        # Sent while it is blocked, so that one that waits already, the key's own, is not a second one.
        os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        if before is not None:
            signal.signal(number, before)
    signal.sigtimedwait([signal.SIGCONT], 0)  # the caller heeds it
