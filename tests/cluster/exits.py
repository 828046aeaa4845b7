"""Stands in for the training under a launcher: exits.py HOW FOLDER."""

import os
import signal
import sys
import time
from pathlib import Path

how, folder = sys.argv[1], Path(sys.argv[2])
rank = os.environ["RANK"]
if how == "saves":
    signal.signal(signal.SIGTERM, lambda *_: time.sleep(1) or sys.exit(75))
(folder / f"{rank}-{os.environ['TORCHELASTIC_RESTART_COUNT']}").touch()  # each start
if how == "killed" and rank == "1":
    os.kill(os.getpid(), signal.SIGKILL)
if how.isdecimal() and rank == "1":
    sys.exit(int(how))
time.sleep(60)
