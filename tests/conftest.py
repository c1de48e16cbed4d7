"""No network, no litter in the home folder, one thread (models are tiny); `import tiny` works."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

_CACHE = tempfile.TemporaryDirectory(prefix="spo-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = _CACHE.name
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
sys.path.insert(0, str(Path(__file__).parent))


def pytest_runtest_setup(item):
    if "torch" in sys.modules:  # a pure-numpy test run never imports it
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def no_browser_behind_it():
    """A file's browser ends with it: the next file's tests may want an event loop of their own."""
    yield
    if "inspector_browser" in sys.modules:
        sys.modules["inspector_browser"].close_browser()
