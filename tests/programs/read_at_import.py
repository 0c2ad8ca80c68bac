"""Reads variables as it is imported."""

import os

THREADS = os.environ.get("OMP_NUM_THREADS")
OTHER = os.environ.get("OTHER")
