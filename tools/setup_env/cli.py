"""The order of the steps; each finds out itself what is left to do, so an interrupted set-up goes on where it was."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from . import constraints
from .audit import audit
from .environment import ROOT, Environment, fingerprint
from .operators import VERIFY, Operators, choose_operators, headless_wins, hide_gpu, install_mmcv
from .preflight import CANDIDATES, Interpreter, check_interpreter, check_space, choose_interpreter, find_compiler, probe
from .process import SetupError, cause
from .sources import Source, choose_source
from .stacks import STACKS, Stack

# For pip: nothing can be downloaded, so that a package missing from the lock is an error.
NOWHERE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; every failure that the user can mend is one line on standard error."""
    parser = argparse.ArgumentParser(
        prog="tools/setup_env", description="Makes the virtual environment; see `make help`."
    )
    parser.add_argument("--stack", default="onedl", help=f"the set of packages: {', '.join(STACKS)}")
    parser.add_argument("--folder", type=Path, help="the environment's folder (default: .venv, .venv-openmmlab)")
    parser.add_argument("--python", help="the Python to make it with (default: the first that suits)")
    parser.add_argument(
        "--hashes", choices=("0", "1"), help="check hashes: never, or always (default: see docs/setup.md)"
    )
    parser.add_argument("--constraints", action="store_true", help="regenerate constraints/*.txt instead")
    parser.add_argument("--upgrade", action="store_true", help="with --constraints: take the newest versions")
    parser.add_argument("--audit", action="store_true", help="list known vulnerabilities of the pins instead")
    options = parser.parse_args(arguments)
    try:
        if options.stack not in STACKS:
            raise SetupError(f"there is no stack {options.stack!r}; STACK is one of {', '.join(STACKS)}")
        if options.constraints:
            constraints.regenerate(options.upgrade)
        elif options.audit:
            return 0 if audit() else 1
        else:
            stack = STACKS[options.stack]
            hashes = None if options.hashes is None else options.hashes == "1"
            set_up(stack, Environment((options.folder or ROOT / stack.folder).absolute()), options.python, hashes)
    except SetupError as error:
        message = str(error)
    except OSError as error:
        message = cause(error)
    except KeyboardInterrupt:
        message = "interrupted; run it again and it goes on from here"
    else:
        return 0
    print(f"setup: {message}", file=sys.stderr)
    return 1


def set_up(stack: Stack, env: Environment, python: str | None, hashes: bool | None) -> None:
    """Brings the environment to the state that the repository's files describe; does nothing if it is there already."""
    if is_complete(stack, env, python, hashes):
        return
    started = time.monotonic()
    # an environment that is there keeps its Python, unless the user names another one
    present = [str(env.python)] if env.version else []
    interpreter = choose_interpreter(stack, [python] if python else [*present, *CANDIDATES])
    check_interpreter(interpreter)
    find_compiler()
    if not check_space(env.folder, present=_size(env.folder)):
        print("setup: the disk has no room for pip's cache, so nothing is kept there", flush=True)
        os.environ["PIP_NO_CACHE_DIR"] = "1"
    with env.locked():
        if is_complete(stack, env, python, hashes):  # by the set-up that held the lock
            return
        env.unstamp()
        operators = install(stack, env, interpreter, hashes)
        env.stamp(describe(stack, env, operators))
        print(f"setup: done in {time.monotonic() - started:.0f} s", flush=True)


def is_complete(stack: Stack, env: Environment, python: str | None, hashes: bool | None = None) -> bool:
    """Tells whether nothing is left to do; on a GPU that stays unused, says that, too."""
    if env.version is None or (hashes and not env.hashed):
        return False
    if python:
        interpreter = probe(python)
        if interpreter is None or interpreter.dotted != env.version:
            return False
    operators = choose_operators(env.torch[1])
    complete = env.is_stamped(describe(stack, env, operators))
    if complete and operators.note:
        print(f"setup: {operators.note}", flush=True)
    return complete


def describe(stack: Stack, env: Environment, operators: Operators) -> str:
    """Fingerprint of all that a set-up depends on."""
    files = [constraints.pins(stack), constraints.lock(stack), ROOT / "setup.py", ROOT / "pyproject.toml"]
    files += Path(__file__).parent.glob("*.py")
    return fingerprint(stack.name, env.version, *operators, files=files)


def install(stack: Stack, env: Environment, interpreter: Interpreter, hashes: bool | None) -> Operators:
    """Installs everything, with the pins of the stack, and verifies it."""
    print(f"setup: the {stack.name} stack on Python {interpreter.dotted} in {env.folder} (log: {env.log})", flush=True)
    source = prepare(stack, env, interpreter, hashes)
    hide_gpu(env, "")

    print("setup: [1/4] torch and the build tools", flush=True)
    tool, *others = stack.build_tools
    env.pip("install", *source.options(tool), doing=f"installing {tool}")  # pip first, for its progress report
    env.pip("install", *source.options(*others), doing="installing the build tools")
    # with hashes, all but mmcv now, since pip cannot be left to find the dependencies of torch
    names = [name for name in source.lines if name != stack.mmcv] if source.hashed else ["torch", "torchvision"]
    env.pip("install", "--no-build-isolation", *source.options(*names), doing="installing torch")
    operators = choose_operators(env.torch[1])
    if operators.note:
        print(f"setup: {operators.note}", flush=True)

    print(f"setup: [2/4] {stack.mmcv} with its operators for {operators.device}", flush=True)
    install_mmcv(env, stack, operators, source)

    print("setup: [3/4] the toolboxes, the tools and this package", flush=True)
    this = f"{ROOT}[{stack.name},demo,export,web,dev]"
    env.pip(
        *("install", "-c", str(source.pins), "--no-build-isolation", *stack.editable, "--editable", this),
        doing="installing the toolboxes and this package",
        env=NOWHERE if source.hashed else None,
    )
    headless_wins(env, source)

    print("setup: [4/4] verifying", flush=True)
    env.run([str(env.python), str(VERIFY), operators.device, *stack.modules], "verifying the environment")
    hide_gpu(env, operators.note)
    return operators


def prepare(stack: Stack, env: Environment, interpreter: Interpreter, hashes: bool | None) -> Source:
    """Makes the virtual environment and decides where its packages come from.

    What was installed without hashes is not made better by checking those of the rest, so such an environment goes on
    without, or is made anew where the user asks for hashes.
    """
    new = env.make(interpreter)
    if hashes and not (new or env.hashed):
        new = env.make(interpreter, anew=True)
    if new or env.hashed or hashes is False:
        source, note = choose_source(stack, env, hashes)
    else:
        source, _ = choose_source(stack, env, False)
        note = "hashes are not checked, as when this environment was made; HASHES=1 makes it anew and checks them"
    env.hashed = source.hashed
    if note:
        print(f"setup: {note}", flush=True)
    return source


def _size(folder: Path) -> float:
    """Gigabytes in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()) / 1e9
