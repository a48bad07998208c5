"""``python -m tests.bench.single``: ours with one message in each statement, the yardstick of its batches."""

from __future__ import annotations

import sys

import server
from plugins.messages import journal

if __name__ == "__main__":
    journal.BATCH_MESSAGES = 1
    sys.exit(server.main())
