"""Runs a script, and writes down each address that it looks up or connects to: watched.py LOG SCRIPT ARGUMENTS."""

import json
import runpy
import sys

log, script, *arguments = sys.argv[1:]


def watch(event: str, args: tuple) -> None:
    if event == "socket.getaddrinfo":
        address = args[0]
    elif event in ("socket.connect", "socket.sendto"):
        address = args[1][0] if isinstance(args[1], tuple) else "a file"
    else:
        return
    with open(log, "a") as file:
        file.write(json.dumps([event, str(address)]) + "\n")


sys.addaudithook(watch)
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
