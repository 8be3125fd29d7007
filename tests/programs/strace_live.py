"""Runs `trapline do` with a trace that is switched on and off while the guest runs: by SIGHUP and SIGQUIT.

    python strace_live.py LOG DO_ARGUMENTS...
"""

import signal
import sys

from trapline.platform import session
from trapline.platform.tracing import Tracing
from trapline.sentry.cli.main import main
from trapline.sentry.options import StraceOptions

log = sys.argv[1]
original = session.Session.run


def run(self):
    tracing = Tracing(self.engine, self.dispatcher, StraceOptions(output=log))

    def switch(number, by_host):
        for t in list(self.engine.tracees.values()):
            if number == signal.SIGHUP:
                tracing.attach(t)
            elif number == signal.SIGQUIT:
                tracing.detach(t)

    self.pump.on_signal = switch
    try:
        return original(self)
    finally:
        tracing.finish()


session.Session.run = run
sys.exit(main(["do", *sys.argv[2:]]))
