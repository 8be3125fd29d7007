import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(params=["seccomp", "ptrace"])
def platform(request):
    """Every test of real processes runs on both platforms."""
    return request.param
