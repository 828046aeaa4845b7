"""Some steps under torch's profiler."""

import gzip
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from selfdistill.bench.trace import WINDOW
from selfdistill.bench.workload import Workload
from selfdistill.durable import write_atomically

STEPS = 5
ENDINGS = (".json", ".json.gz")


def profile_steps(work: Workload) -> dict[str, Any] | None:
    """The trace of a few steps, whose batches are there beforehand; on the main process."""
    first, *batches = [work.fetch() for _ in range(STEPS + 1)]
    if not work.accelerator.is_main_process:
        for batch in (first, *batches):
            work.step(batch)
        work.finish()
        return None
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would speak of its own beginnings
    activities = [ProfilerActivity.CPU]
    if work.accelerator.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        work.step(first)  # slower under a profiler that has just begun
        work.finish()
        with record_function(WINDOW):
            for batch in batches:
                work.step(batch)
            work.finish()
    with TemporaryDirectory(prefix="selfdistill-") as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for key in ("traceName", "host_name"):  # of no use to those who are sent the file
        trace.pop(key, None)
    return trace


def write_trace(trace: dict[str, Any], path: Path) -> None:
    """Write it for Perfetto or chrome://tracing."""
    content = json.dumps(trace).encode()
    write_atomically(path, gzip.compress(content) if path.suffix.lower() == ".gz" else content)
