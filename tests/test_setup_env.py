"""The set-up: real processes in temporary folders; nothing is downloaded, nothing of ours is replaced."""

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from setup_env import cli, constraints, environment, operators, preflight, process  # noqa: E402  (tools/ is no package)
from setup_env.stacks import STACKS  # noqa: E402

SCRIPT = [sys.executable, str(ROOT / "tools" / "setup_env")]
PYTHONS = [(stack, minor) for stack in STACKS.values() for minor in range(stack.oldest[1], stack.newest[1] + 1)]


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def python(tmp_path):
    """Returns a function: a Python that runs some code before the `-c` code that it is given."""

    def make(first: str) -> str:
        return str(
            executable(tmp_path / "python-fake", f"#!{sys.executable}\nimport sys\n{first}\nexec(sys.argv[2])\n")
        )

    return make


@pytest.fixture
def bare(tmp_path):
    """An environment with Python only, as `python -m venv` makes it, pip left out."""
    env = environment.Environment(tmp_path / "venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", env.folder], check=True)
    return env


def fails(*arguments: str, **variables: str) -> str:
    """Runs the set-up, which has to fail with one line; returns that line."""
    result = subprocess.run([*SCRIPT, *arguments], env={**os.environ, **variables}, capture_output=True, text=True)
    lines = result.stderr.splitlines()
    assert result.returncode == 1
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("setup: ")
    return lines[0]


# What the machine lacks: one line, before anything is made.


@pytest.mark.parametrize(
    ("first", "stack", "said"),
    [
        ("sys.version_info = (3, 9, 18)", "onedl", ["Python 3.9.18", "too old", "3.10 to 3.12", "PYTHON="]),
        ("sys.version_info = (3, 13, 0)", "onedl", ["Python 3.13.0", "too new", "3.10 to 3.12", "PYTHON="]),
        ("sys.version_info = (3, 12, 1)", "openmmlab", ["Python 3.12.1", "too new", "3.10 to 3.11", "PYTHON="]),
        ("sys.exit(127)", "onedl", ["python-fake", "no such Python runs", "PYTHON="]),
        (
            "sys.version_info = (3, 11, 2); sys.modules['ensurepip'] = None",
            "onedl",
            ["no venv module", "apt-get install python3.11-venv"],
        ),
        (
            "import ensurepip, sysconfig; sysconfig.get_paths = lambda: {'include': '/nowhere'}",
            "onedl",
            ["Python.h", f"apt-get install python3.{sys.version_info.minor}-dev"],
        ),
    ],
    ids=["too old", "too new", "too new for upstream", "does not run", "no venv module", "no headers"],
)
def test_an_unfit_python_is_named_with_the_remedy(python, tmp_path, first, stack, said):
    line = fails("--stack", stack, "--folder", str(tmp_path / "venv"), "--python", python(first))
    assert all(part in line for part in said)
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("broken", [False, True], ids=["none", "broken"])
def test_a_missing_compiler_is_named_with_the_remedy(tmp_path, broken):
    (tmp_path / "bin").mkdir()
    if broken:
        executable(tmp_path / "bin" / "g++", "#!/bin/sh\nexit 1\n")
    line = fails("--folder", str(tmp_path / "venv"), "--python", sys.executable, PATH=str(tmp_path / "bin"), CXX="")
    assert "C++" in line
    assert "apt-get install g++" in line
    assert not (tmp_path / "venv").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, a file system without free space")
def test_too_little_disk_space_is_named_before_anything_is_made():
    line = fails("--folder", "/proc/venv", "--python", sys.executable)
    assert re.search(r"disk of /proc has 0\.0 GB free and the set-up needs \d", line)


@pytest.mark.parametrize(("installed", "downloads", "room"), [(0.2, 0.2, True), (0.5, 0.3, False)])
def test_on_a_short_disk_the_cache_is_given_up_first(tmp_path, monkeypatch, installed, downloads, room):
    free = shutil.disk_usage(tmp_path).free / 1e9
    monkeypatch.setattr(preflight, "needed_space", lambda: preflight.Space(installed * free, downloads * free))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
    assert preflight.check_space(tmp_path / "venv") is room


def test_an_unknown_stack_is_named_with_the_known_ones():
    assert "'mmcv'; STACK is one of onedl, openmmlab" in fails("--stack", "mmcv")


def test_a_machine_without_python_is_told_so(tmp_path):
    make = shutil.which("make")
    result = subprocess.run([make, "-C", ROOT, "setup"], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert result.returncode != 0
    assert result.stderr.startswith("setup: no Python 3 runs here; apt-get install python3")


# Failures of child processes.


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full"),
        ("fatal error: error writing to /tmp/ccX.s: No space left on device", "the disk is full"),
        (
            "ImportError: libGL.so.1: cannot open shared object file: No such file or directory",
            "libGL.so.1 is missing: apt-get install libgl1",
        ),
        (
            "ImportError: libgthread-2.0.so.0: cannot open shared object file: No such file",
            "apt-get install libglib2.0-0",
        ),
        ("c++: fatal error: Killed signal terminated program cc1plus", "MAX_JOBS=1 make setup"),
        ("fatal error: Python.h: No such file or directory", "headers"),
        ("<...>: Failed to establish a new connection: [Errno -2] Name or service not known", "PIP_INDEX_URL"),
    ],
)
def test_known_causes_are_explained(output, said):
    assert said in process.explain(output)


@pytest.mark.parametrize(
    "output",
    [
        "ImportError: libc10_cuda.so: cannot open shared object file",  # mmcv's, of another torch: compiling cures it
        "ERROR: No matching distribution found for onedl-mmcv==2.3.6",
    ],
)
def test_other_failures_are_left_to_the_caller(output):
    assert process.explain(output) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_a_disk_that_fills_up_under_a_child_is_explained(tmp_path):
    code = "open('/dev/full', 'w', buffering=1).write('x\\n')"
    with pytest.raises(process.ProcessError, match="installing it: the disk is full; free some space") as error:
        process.run([sys.executable, "-c", code], "installing it", tmp_path / "log")
    assert error.value.known


def test_a_failing_child_leaves_its_last_error_and_the_log(tmp_path):
    code = "print('ERROR: no such wheel'); print('bye'); raise SystemExit(3)"
    with pytest.raises(process.ProcessError, match=r"ERROR: no such wheel \(the whole output is in .*log\)") as error:
        process.run([sys.executable, "-c", code], "installing it", tmp_path / "log")
    assert not error.value.known
    assert "bye\n" in (tmp_path / "log").read_text()


def test_the_progress_of_a_compilation_is_visible(tmp_path, capsys):
    code = "print('[1/78] c++ -c a.cpp'); print('[78/78] c++ -shared')"
    process.run([sys.executable, "-c", code], "compiling", tmp_path / "log")
    assert capsys.readouterr().out.splitlines() == ["  compiling [1/78]", "  compiling [78/78]"]


# The environment: complete, half made, in use.


def complete(env: environment.Environment) -> None:
    """Stamps an environment as a set-up that ended well does."""
    env.stamp(cli.describe(STACKS["onedl"], env, operators.choose_operators(env.torch[1])))


def test_a_second_call_does_nothing_in_under_two_seconds(bare):
    complete(bare)
    before = {path: path.lstat().st_mtime_ns for path in bare.folder.rglob("*")}
    started = time.monotonic()
    result = subprocess.run([*SCRIPT, "--folder", bare.folder], capture_output=True, text=True)
    assert time.monotonic() - started < 2
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert before == {path: path.lstat().st_mtime_ns for path in bare.folder.rglob("*")}


def test_an_environment_without_a_stamp_is_not_complete(bare):
    assert not cli.is_complete(STACKS["onedl"], bare, None)
    complete(bare)
    assert cli.is_complete(STACKS["onedl"], bare, None)
    bare.unstamp()
    assert not cli.is_complete(STACKS["onedl"], bare, None)


def test_an_environment_whose_python_is_gone_is_not_complete(bare):
    complete(bare)
    bare.python.unlink()
    assert not cli.is_complete(STACKS["onedl"], bare, None)


def test_another_python_than_the_environments_is_work_to_do(bare, python):
    complete(bare)
    assert cli.is_complete(STACKS["onedl"], bare, sys.executable)
    assert not cli.is_complete(STACKS["onedl"], bare, python("sys.version_info = (3, 10, 1)"))


def test_every_fact_and_file_counts_in_the_fingerprint(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("one")
    b.write_text("two")
    prints = [environment.fingerprint("onedl", "3.11.7", "cpu", files=[a, b])]
    prints.append(environment.fingerprint("onedl", "3.11.8", "cpu", files=[a, b]))
    prints.append(environment.fingerprint("onedl", "3.11.7", "cuda", files=[a, b]))
    b.write_text("three")
    prints.append(environment.fingerprint("onedl", "3.11.7", "cpu", files=[a, b]))
    assert len(set(prints)) == 4


def test_a_second_set_up_waits_for_the_first_even_for_its_orphans(bare):
    holder = f"""
import sys, subprocess
sys.path.insert(0, {str(ROOT / "tools")!r})
from setup_env.environment import Environment
env = Environment(__import__('pathlib').Path({str(bare.folder)!r}))
with env.locked():
    print('locked', flush=True)
    env.run([sys.executable, '-c', 'import time; time.sleep(1.5)'], 'sleeping')
"""
    first = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "locked\n"
    time.sleep(0.3)
    first.kill()  # SIGKILL: its child goes on, and has the lock
    first.wait()
    waiter = holder.replace("time.sleep(1.5)", "pass")
    started = time.monotonic()
    second = subprocess.run([sys.executable, "-c", waiter], capture_output=True, text=True, check=True)
    assert second.stdout.startswith("setup: waiting for another set-up")
    assert time.monotonic() - started > 0.5


def test_a_half_made_environment_is_made_again_and_keeps_its_wheels(bare):
    (bare.folder / "wheels").mkdir()
    (bare.folder / "left-over").touch()
    interpreter = cli.probe(sys.executable)
    with bare.locked():
        bare.make(interpreter)  # it had no pip
    assert subprocess.run([bare.python, "-m", "pip", "--version"], capture_output=True).returncode == 0
    assert (bare.folder / "wheels").exists()
    assert not (bare.folder / "left-over").exists()

    marker = bare.packages / "marker"
    half, moved = bare.packages / "half-1.0.dist-info", bare.packages / "~orch"
    for folder in (half, moved):
        folder.mkdir()
    marker.touch()
    with bare.locked():
        bare.make(interpreter)  # sound now: only what a killed pip left goes
    assert marker.exists()
    assert not half.exists()
    assert not moved.exists()


# CPU or GPU.


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Returns a function that puts an nvidia-smi in front of the PATH and makes a CUDA toolkit that CUDA_HOME names."""

    def make(gpu: bool, nvcc: str) -> None:
        release = f"Cuda compilation tools, release {nvcc}, V{nvcc}.48"
        executable(tmp_path / "nvidia-smi", f"#!/bin/sh\n{'echo GPU 0: NVIDIA H100' if gpu else 'exit 9'}\n")
        for folder in ("bin", "include"):
            (tmp_path / "cuda" / folder).mkdir(parents=True)
        (tmp_path / "cuda" / "include" / "cuda_runtime.h").touch()
        if nvcc:
            executable(tmp_path / "cuda" / "bin" / "nvcc", f"#!/bin/sh\necho {release!r}\n")
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return make


@pytest.mark.parametrize(
    ("gpu", "nvcc", "torch_cuda", "device", "noted"),
    [
        (False, "", "13.0", "cpu", ""),
        (False, "13.0", "13.0", "cpu", ""),
        (True, "13.0", "13.0", "cuda", ""),
        (True, "13.1", "13.0", "cuda", ""),
        (True, "12.4", "13.0", "cpu", "nvcc is of CUDA 12.4 where torch needs 13.0"),
        (True, "", "12.1", "cpu", "there is no nvcc where torch needs 12.1"),
        (True, "13.0", None, "cpu", ""),
    ],
)
def test_operators_are_built_for_what_can_be_built(machine, gpu, nvcc, torch_cuda, device, noted):
    machine(gpu, nvcc)
    chosen = operators.choose_operators(torch_cuda)
    assert chosen.device == device
    assert noted in chosen.note
    assert bool(chosen.note) == bool(noted)


@pytest.mark.parametrize("value", ["", "-1"])
def test_a_gpu_that_the_user_hides_is_not_built_for(machine, monkeypatch, value):
    machine(True, "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert operators.choose_operators("13.0") == operators.Operators("cpu")


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_toolkit_of_the_nvcc_on_the_path_is_found(machine, tmp_path, monkeypatch, wrapped):
    machine(True, "13.0")
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    if wrapped:
        (tmp_path / "local" / "bin").mkdir(parents=True)
        (tmp_path / "local" / "bin" / "nvcc").symlink_to(nvcc)
        nvcc = tmp_path / "local" / "bin" / "nvcc"
    monkeypatch.setenv("PATH", str(nvcc.parent), prepend=os.pathsep)
    assert operators.choose_operators("13.0").cuda_home == str(tmp_path / "cuda")


def test_an_nvcc_without_headers_does_not_count(machine, tmp_path):
    machine(True, "13.0")
    (tmp_path / "cuda" / "include" / "cuda_runtime.h").unlink()
    assert "there is no nvcc" in operators.choose_operators("13.0").note


def test_a_gpu_without_operators_is_hidden_from_every_command_which_says_so_once(bare, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    show = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True)"
    parent = [bare.python, "-c", f"{show}; import subprocess, sys; subprocess.run([sys.executable, '-c', {show!r}])"]
    operators.hide_gpu(bare, "there's a GPU, but no nvcc")
    hidden = subprocess.run(parent, capture_output=True, text=True, check=True)
    assert (hidden.stdout, hidden.stderr) == ("-1\n-1\n", "there's a GPU, but no nvcc\n")
    operators.hide_gpu(bare, "")
    seen = subprocess.run(parent, capture_output=True, text=True, check=True)
    assert (seen.stdout, seen.stderr) == ("None\nNone\n", "")


# Pins and extras.


def pinned(stack, minor: int) -> dict[str, Requirement]:
    """The stack's pins on one Python, by name; each once."""
    lines = [line for line in constraints.pins(stack).read_text().splitlines() if not line.startswith("#")]
    requirements = [Requirement(line) for line in lines]
    here = [r for r in requirements if r.marker is None or r.marker.evaluate({"python_version": f"3.{minor}"})]
    assert len({r.name for r in here}) == len(here)
    return {r.name: r for r in here}


@pytest.fixture(scope="module")
def extras(tmp_path_factory) -> dict[str, list[Requirement]]:
    """The requirements that setup.py declares, by extra; '' for the base."""
    folder = tmp_path_factory.mktemp("metadata")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    found = {"": []}
    for line in next(folder.glob("*.egg-info/requires.txt")).read_text().splitlines():
        if line.startswith("["):
            extra = found.setdefault(line.strip("[]"), [])
        elif line:
            (extra if len(found) > 1 else found[""]).append(Requirement(line))
    return found


@pytest.mark.parametrize(("stack", "minor"), PYTHONS, ids=lambda value: getattr(value, "name", value))
def test_every_line_pins_one_version(stack, minor):
    for requirement in pinned(stack, minor).values():
        assert re.fullmatch(r"==[\w.+!]+", str(requirement.specifier)), requirement


@pytest.mark.parametrize(("stack", "minor"), PYTHONS, ids=lambda value: getattr(value, "name", value))
def test_the_pins_fit_what_the_extras_and_the_build_ask_for(extras, stack, minor):
    pins = pinned(stack, minor)
    wanted = [*extras[""], *extras[stack.name], *extras["demo"], *extras["dev"], *map(Requirement, stack.build_tools)]
    for requirement in wanted:
        version = str(pins[requirement.name].specifier).removeprefix("==")
        assert requirement.specifier.contains(version), requirement


def test_the_pins_cover_what_is_installed_here():
    stack = next((stack for stack in STACKS.values() if _has(stack.mmcv)), None)
    if stack is None:
        pytest.skip("neither stack is installed")
    pins = pinned(stack, sys.version_info.minor)
    todo, seen = [stack.mmcv, *("torch", "torchvision", "pytest", "scikit-image")], set()
    while todo:
        name = todo.pop()
        if name in seen or not _has(name):
            continue
        seen.add(name)
        assert name in pins, f"{name} is installed and not pinned"
        required = map(Requirement, importlib.metadata.requires(name) or [])
        todo += [_canonical(r.name) for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]


def _has(name: str) -> bool:
    try:
        return bool(importlib.metadata.distribution(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_torch_pin_accepts_a_cpu_only_build():
    assert pinned(STACKS["onedl"], 11)["torch"].specifier.contains("2.11.0+cpu")


def test_no_constraints_file_holds_both_stacks():
    for stack, minor in PYTHONS:
        names = set(pinned(stack, minor))
        assert any(name.startswith("onedl-") for name in names) == (stack.name == "onedl")
        assert bool(names & {"mmengine", "mmcv", "mmdet", "openmim"}) == (stack.name == "openmmlab")


def test_the_base_requires_torch_and_nothing_of_openmmlab(extras):
    assert [str(requirement) for requirement in extras[""]] == ["torch"]


def test_resolutions_of_several_pythons_are_merged_with_markers():
    resolved = {"3.10": ["a==1", "b==1"], "3.11": ["a==1", "b==2"], "3.12": ["a==1", "b==2", "c==1"]}
    assert constraints.merge(resolved) == [
        "a==1",
        'b==1 ; python_version == "3.10"',
        'b==2 ; python_version == "3.11" or python_version == "3.12"',
        'c==1 ; python_version == "3.12"',
    ]


def test_the_headless_opencv_owns_the_shared_files():
    if not _has("opencv-python-headless"):
        pytest.skip("OpenCV is not installed")
    files = importlib.metadata.files("opencv-python-headless")
    library = next(file for file in files if re.fullmatch(r"cv2/cv2[.\w-]*\.so", str(file)))
    digest = hashlib.sha256(library.locate().read_bytes()).digest()
    assert library.hash.value == urlsafe_b64encode(digest).decode().rstrip("=")


# The commands.


def test_make_help_lists_every_target():
    output = subprocess.run(["make", "-C", ROOT, "--no-print-directory"], capture_output=True, text=True).stdout
    targets = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    listed = re.findall(r"^make ([a-z-]+) +\S.*", output, re.MULTILINE)
    assert sorted(listed) == sorted(targets)


@pytest.mark.parametrize(("given", "shared"), [("", True), ("/a /b", True), ("/a", False)])
def test_ci_adds_the_shared_wheels_to_those_it_was_given(tmp_path, given, shared):
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / ".ci", clone / ".ci")
    (tmp_path / "bin").mkdir()
    show = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('PIP_FIND_LINKS', '').split()]))"
    executable(tmp_path / "bin" / "make", f"#!{sys.executable}\n{show}\n")
    if shared:
        (tmp_path / "shared" / "wheels").mkdir(parents=True)
    env = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", **({"PIP_FIND_LINKS": given} if given else {})}
    output = subprocess.run(["bash", clone / ".ci" / "run"], env=env, capture_output=True, check=True).stdout
    arguments, links = json.loads(output)
    assert arguments == ["test"]
    assert links == given.split() + ([str(tmp_path / "shared" / "wheels")] if shared else [])
