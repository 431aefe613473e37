"""With --import-mode=importlib the folder of the tests is on no path; the builders beside them are imported by name."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "fakes"))
