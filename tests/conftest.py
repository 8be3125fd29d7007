import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# Shells start what runs in the background with these ignored, and what the tests start would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


# How long an example takes says more about what else the machine does.
settings.register_profile("trapline", deadline=None)
settings.load_profile("trapline")


@pytest.fixture(params=["seccomp", "ptrace"])
def platform(request):
    """Every test of real processes runs on both platforms."""
    return request.param
