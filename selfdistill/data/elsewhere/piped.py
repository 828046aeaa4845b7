"""What a shell command writes to its standard output, as a file."""

import os
import select
import signal
import subprocess
from collections.abc import Generator
from contextlib import suppress

from selfdistill.data.elsewhere.transport import CHUNK, Broken, Refused, Stamp, Transport


class PipedFile(Transport):
    """The output of a command that the user has allowed to be run."""

    def __init__(self, command: str, timeout: float) -> None:
        self._command = command
        self._timeout = timeout

    def stamp(self, renewed: bool = False) -> Stamp:
        return Stamp(None, "", False)

    def part(self, start: int, stop: int, stamp: Stamp) -> bytes:
        raise AssertionError("the stamp says that there are no parts")

    def whole(self) -> Generator[bytes]:
        process = subprocess.Popen(
            self._command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,  # so that all it starts can be ended
        )
        assert process.stdout is not None
        output = process.stdout.fileno()
        waiting = select.poll()
        waiting.register(output)
        try:
            while True:
                if not waiting.poll(self._timeout * 1000):
                    raise Broken(f"no byte for {self._timeout:g} s")
                chunk = os.read(output, CHUNK)
                if not chunk:
                    break
                yield chunk
            code = process.wait()
        finally:
            process.stdout.close()
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if code in (126, 127):
            raise Refused("the shell cannot run it; check the command")
        if code:
            raise Broken(f"the command ended with exit code {code}")
