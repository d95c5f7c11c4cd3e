"""What `compare.py` runs: the peers and ours, the work they are given, what drives them, and what is made of it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "tests"))  # the harness of the tests is used here, too
