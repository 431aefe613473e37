import sys
import tempfile
from pathlib import Path

import pytest

# The harnesses of these tests are modules beside them.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def place():
    from raylet_node import place as make

    with tempfile.TemporaryDirectory(prefix="shoal-") as directory:  # short: a Unix socket's path has a limit
        yield from make(Path(directory))
