import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

# Shells start what runs in the background with these ignored, and what the tests start would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture(params=["seccomp", "ptrace"])
def platform(request):
    """Every test of real processes runs on both platforms."""
    return request.param
