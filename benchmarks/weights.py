"""Measures weights in flight beside a plain memcpy of as many bytes: `python benchmarks/weights.py …`.

A push by one process, then loads by one or four readers at once, each into tensors of its own. Every sample is beside
a memcpy, in the same process or in as many at once, between tensors that are in memory already. Exit 1 where a limit
was missed.
"""

from __future__ import annotations

import multiprocessing
import shutil
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

from forge import Forge
from harness import Sections, run
from measure import BenchmarkError, Row
from sides import apart  # noqa: F401

SIZES = {"10 MB": 10**7, "100 MB": 10**8, "1 GB": 10**9}
