import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def world():
    from kernel_fixture import World

    w = World()
    yield w
    w.check_plain()
