"""Child processes: their output goes to a log, their progress to the terminal, their failure into one clear line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

# What a system library's absence is called, and the Debian package that cures it.
APT_PACKAGES = {
    "libGL.so": "libgl1",
    "libglib-2.0.so": "libglib2.0-0",
    "libgthread-2.0.so": "libglib2.0-0",
    "libgomp.so": "libgomp1",
    "libSM.so": "libsm6",
    "libXext.so": "libxext6",
    "libXrender.so": "libxrender1",
    "libstdc++.so": "libstdc++6",
}

# (pattern in the output, the line for the user); the first that matches wins, so causes stand before consequences.
CAUSES = (
    (
        r"No space left on device|Errno 28\b|Errno 122\b|[Dd]isk quota exceeded|[Dd]isk is full",
        "the disk is full; free some space (or set TMPDIR to a folder on a larger disk) and run it again",
    ),
    (
        r"[Kk]illed signal terminated program|virtual memory exhausted|[Cc]annot allocate memory|signal: killed",
        "the compiler ran out of memory; run it again with fewer jobs: MAX_JOBS=1 make setup",
    ),
    (r"Python\.h: No such file", "the Python headers are missing; install them (apt-get install python3-dev)"),
    (
        r"DO NOT MATCH THE HASHES",
        "a file is not the one whose hash stands in constraints/ (the log names it), and it was not installed; "
        "try again later or with another index, and if it is a file of your own: make setup HASHES=0",
    ),
    (
        r"name resolution|Name or service not known|Failed to establish a new connection|Read timed out"
        r"|Connection refused|Connection aborted|Network is unreachable|Tunnel connection failed"
        r"|SSLError|ProxyError|IncompleteRead",
        "the package index cannot be reached; check the network, the proxy and PIP_INDEX_URL, and run it again",
    ),
)

_COUNTER = re.compile(r"^\[(\d+)/(\d+)\]")  # ninja
_DOWNLOAD = re.compile(r"^Progress (\d+) of (\d+)")  # pip --progress-bar raw
_PIP = re.compile(r"^\s*((?:Downloading|Building wheels? for|Installing collected) .*)")
_SMALL = re.compile(r"Downloading .*\((\d\.\d MB|\d+(\.\d+)? kB|\d+ bytes)\)$")


class SetupError(Exception):
    """A failure that the user can do something about: one line that names the problem and the remedy."""


class ProcessError(SetupError):
    """A child process failed; `known` tells that the machine is the cause, so that trying something else is no use."""

    def __init__(self, message: str, known: bool):
        super().__init__(message)
        self.known = known


def explain(output: str) -> str | None:
    """Names the cause of a failure if the output shows a known one.

    Args:
        output: what the failed process printed.

    Returns:
        One line with the remedy, or None.
    """
    library = re.search(r"(lib[\w+.-]+?\.so)([\w.]*): cannot open shared object file", output)
    if library:
        name, version = library.groups()
        if name in APT_PACKAGES:
            return (
                f"the system library {name}{version} is missing: apt-get install {APT_PACKAGES[name]}, and run it again"
            )
    return next((line for pattern, line in CAUSES if re.search(pattern, output)), None)


def cause(error: OSError) -> str:
    """Names the cause of an operating system error of our own, as `explain` does for the children's."""
    return explain(str(error)) or f"{error.strerror or error} ({error.filename})"


class Progress:
    """Shows what a child is doing: one line that is overwritten on a terminal, a line now and then elsewhere."""

    def __init__(self, every: float = 15.0):
        """Sets the seconds between two lines of a counter where lines cannot be overwritten."""
        self.terminal = sys.stdout.isatty()
        self.every = every
        self.shown = 0.0
        self.current = ""
        self.quiet = False

    def feed(self, line: str) -> None:
        """Takes a line of output and shows what is of interest in it."""
        if match := _PIP.match(line):
            self.current = match[1].strip()
            self.quiet = not self.terminal and bool(_SMALL.match(self.current))
            if not self.quiet:
                self._show(self.current)
        elif match := _COUNTER.match(line):
            self._show(f"compiling {match[0]}", counter=match[1] != match[2])
        elif (match := _DOWNLOAD.match(line)) and int(match[2]) > 0 and not self.quiet:
            self._show(f"{self.current}  {100 * int(match[1]) // int(match[2])} %", counter=True)

    def _show(self, text: str, counter: bool = False) -> None:
        text = text if len(text) <= 110 else f"{text[:107]}..."
        if self.terminal:
            print(f"\r\033[K  {text}", end="", flush=True)
        elif not counter or time.monotonic() - self.shown > self.every:
            print(f"  {text}", flush=True)
            self.shown = time.monotonic()

    def close(self) -> None:
        """Clears the line on a terminal."""
        if self.terminal:
            print("\r\033[K", end="", flush=True)


def run(
    command: list[str],
    doing: str,
    log: Path,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    keep_fd: int = -1,
) -> None:
    """Runs a command, with its whole output in the log and its progress on the terminal.

    Args:
        command: program and arguments.
        doing: what it is for, as the error line will say it.
        log: file that the output is appended to.
        env: variables set besides the inherited ones.
        cwd: its working folder.
        keep_fd: a file descriptor that the child inherits (the lock, so that an orphan still holds it).

    Raises:
        ProcessError: it failed; the message is one line.
    """
    tail: deque[str] = deque(maxlen=400)
    progress = Progress()
    with open(log, "a", buffering=1, encoding="utf-8") as file:  # by lines, for the reader after a kill
        file.write(f"\n$ {' '.join(command)}\n")
        child = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            pass_fds=(keep_fd,) if keep_fd >= 0 else (),
        )
        try:
            for line in child.stdout:
                tail.append(line)
                progress.feed(line)
                if not _DOWNLOAD.match(line):
                    file.write(line)
            code = child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise
        finally:
            progress.close()
    if code:
        output = "".join(tail)
        last = next((line.strip() for line in reversed(tail) if "error" in line.lower()), f"exit status {code}")
        known = explain(output)
        raise ProcessError(f"{doing}: {known or f'{last} (the whole output is in {log})'}", known is not None)
