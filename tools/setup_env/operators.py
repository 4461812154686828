"""mmcv with its operators: for the CPU or for CUDA, from a wheel that fits or compiled here."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

from .environment import Environment
from .preflight import find_compiler
from .process import ProcessError, SetupError
from .sources import Source
from .stacks import Stack

VERIFY = Path(__file__).with_name("verify.py")


class Operators(NamedTuple):
    """What mmcv's operators are built for.

    Attributes:
        device: 'cpu' or 'cuda'.
        note: why a GPU that is there stays unused.
        cuda_home: the CUDA toolkit's folder.
    """

    device: str
    note: str = ""
    cuda_home: str = ""


def _output(command: list[str]) -> str:
    """Output of a command, '' if it is missing, fails or hangs."""
    try:
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30, check=True
        ).stdout.decode()
    except (OSError, subprocess.SubprocessError):
        return ""


def _toolkit() -> tuple[str, str]:
    """Folder and version of a CUDA toolkit with nvcc and headers, ('', '') if there is none.

    As torch does, it asks CUDA_HOME, else the nvcc on the PATH, else /usr/local/cuda; unlike torch it follows links
    and asks for the headers, since an nvcc on the PATH may be a wrapper.
    """
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = Path(shutil.which("nvcc") or "/nowhere/bin/nvcc")
    homes = [Path(named)] if named else [nvcc.parents[1], nvcc.resolve().parents[1], Path("/usr/local/cuda")]
    for home in homes:
        release = re.search(r"release (\d+\.\d+)", _output([str(home / "bin" / "nvcc"), "--version"]))
        headers = [*home.glob("include/cuda_runtime.h"), *home.glob("targets/*/include/cuda_runtime.h")]
        if release and headers:
            return str(home), release[1]
    return "", ""


def choose_operators(torch_cuda: str | None) -> Operators:
    """Decides for which device mmcv's operators are built.

    Operators without CUDA fail as soon as mmengine moves a model to the GPU, and operators with CUDA need an nvcc of
    the same major version as torch's: where it is missing, the GPU has to stay out of sight.

    Args:
        torch_cuda: version of CUDA that the installed torch was built for, None for a CPU-only torch.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    if not torch_cuda or hidden or "GPU" not in _output(["nvidia-smi", "-L"]):
        return Operators("cpu")
    home, nvcc = _toolkit()
    if nvcc.split(".")[0] == torch_cuda.split(".")[0]:
        return Operators("cuda", cuda_home=home)
    found = f"nvcc is of CUDA {nvcc}" if nvcc else "there is no nvcc"
    return Operators(
        "cpu",
        f"there is a GPU, but {found} where torch needs {torch_cuda}: mmcv's operators are built for the CPU and every "
        f"command runs on the CPU; to use the GPU, install the CUDA toolkit {torch_cuda} (CUDA_HOME names it) and run "
        f"make setup again",
    )


def hide_gpu(env: Environment, note: str) -> None:
    """Makes every Python of the environment run on the CPU and say so, or takes that back if the note is empty.

    A .pth file, so that commands typed by hand are covered as well as the Makefile's; the variable that it sets also
    keeps child processes from saying it again.
    """
    path = env.packages / "mmsmlp_cpu_only.pth"
    if note:
        path.write_text(
            "import os, sys; os.environ.get('CUDA_VISIBLE_DEVICES') == '-1' or "
            f"(sys.stderr.write({note + chr(10)!r}), os.environ.update(CUDA_VISIBLE_DEVICES='-1'))\n"
        )
    elif path.exists():
        path.unlink()


def headless_wins(env: Environment, source: Source) -> None:
    """Gives the files of `cv2`, which two distributions own, to the one that needs no libGL."""
    if not (env.packages / "cv2").exists():
        return
    for record in env.packages.glob("opencv_python_headless-*.dist-info/RECORD"):
        for line in record.read_text().splitlines():
            name, digest, _ = line.rsplit(",", 2)
            if re.match(r"cv2/cv2[.\w-]*\.so$", name) and (env.packages / name).exists():
                content = hashlib.sha256((env.packages / name).read_bytes()).digest()
                if digest == "sha256=" + base64.urlsafe_b64encode(content).decode().rstrip("="):
                    return
    options = ("--force-reinstall", "--no-deps", *source.options("opencv-python-headless"))
    env.pip("install", *options, doing="installing the headless OpenCV")


def install_mmcv(env: Environment, stack: Stack, operators: Operators, source: Source) -> None:
    """Installs mmcv with operators that work with the installed torch, by the cheapest way that does.

    These ways are tried: what is installed; a wheel that was compiled here before; a wheel that pip finds; compiling.

    Raises:
        SetupError: none led to operators that work.
    """
    version = re.search(rf"^{stack.mmcv}==(\S+)", source.pins.read_text(), re.MULTILINE)[1]
    requirement = f"{stack.mmcv}=={version}"
    # a wheel's name tells neither the torch nor the device that it was compiled for, so its folder does
    wheels = env.folder / "wheels" / f"torch{env.torch[0]}-{operators.device}"
    pattern = f"{stack.mmcv.replace('-', '_')}-{version}-cp{''.join(env.version.split('.')[:2])}-*.whl"

    def compiled(wheel: Path) -> tuple[str, ...]:
        return "-c", str(source.pins), str(wheel)

    def install(*arguments: str) -> None:
        env.pip("uninstall", "-y", stack.mmcv, doing="removing the mmcv that does not work")
        env.pip("install", *arguments, doing=f"installing {requirement}")
        headless_wins(env, source)

    def check() -> None:
        env.run([str(env.python), str(VERIFY), operators.device], "checking mmcv's operators")

    def works_after(*arguments: str) -> bool:
        try:
            if arguments:
                install(*arguments)
            check()
        except ProcessError as error:
            if error.known:
                raise
            return False
        return True

    headless_wins(env, source)
    if works_after() or any(works_after(*compiled(wheel)) for wheel in wheels.glob(pattern)):
        return
    if works_after(*source.wheels(stack.mmcv, requirement)):
        return
    _compile(env, stack, operators, source, requirement, wheels)
    install(*compiled(next(wheels.glob(pattern))))
    check()


def _jobs() -> int:
    """Compilers to run at once: one a CPU, as far as 2 GB of memory each allow; MAX_JOBS overrules."""
    if os.environ.get("MAX_JOBS", "").isdigit():
        return int(os.environ["MAX_JOBS"])
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        available = int(re.search(r"MemAvailable: *(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
    except (OSError, TypeError):
        return cpus
    return max(1, min(cpus, available // 2_000_000_000))


def _compile(
    env: Environment, stack: Stack, operators: Operators, source: Source, requirement: str, wheels: Path
) -> None:
    """Compiles mmcv into a wheel, in a folder that stays, so that an interrupted compilation goes on where it was."""
    folder = env.folder / "build" / f"{requirement.replace('==', '-')}-{wheels.name}"
    if not folder.exists():
        _download_source(env, stack, source, requirement, folder)
    # ninja goes on after the objects that are complete; setuptools would take a half-linked library for a complete one
    for product in folder.glob("build/*"):
        if not product.name.startswith("temp."):
            shutil.rmtree(product)
    jobs, done = _jobs(), len(list(folder.glob("build/temp.*/**/*.o")))
    print(f"setup: compiling for {operators.device}, {jobs} files at a time; {done} are compiled already", flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        variables = {
            "MMCV_WITH_OPS": "1",
            "MAX_JOBS": str(jobs),
            "CXX": find_compiler(),
            # no debug information; setuptools adds CPPFLAGS to Python's own flags, and CFLAGS would replace them
            "CPPFLAGS": f"{os.environ.get('CPPFLAGS', '')} -g0".strip(),
            "FORCE_CUDA": "1" if operators.device == "cuda" else "0",
            **({"CUDA_HOME": operators.cuda_home} if operators.cuda_home else {"CUDA_VISIBLE_DEVICES": "-1"}),
        }
        try:
            command = [str(env.python), "setup.py", "bdist_wheel", "--dist-dir", temporary]
            env.run(command, f"compiling {requirement}", variables, cwd=folder)
        except ProcessError as error:
            if operators.device == "cuda":
                raise SetupError(f"{error}; CUDA_VISIBLE_DEVICES=-1 make setup compiles for the CPU instead") from error
            raise
        wheels.mkdir(parents=True, exist_ok=True)
        for wheel in Path(temporary).glob("*.whl"):
            os.replace(wheel, wheels / wheel.name)


def _download_source(env: Environment, stack: Stack, source: Source, requirement: str, folder: Path) -> None:
    """Downloads and unpacks the source archive; the folder appears complete or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        options = ("--no-deps", "--no-binary", stack.mmcv, "--no-build-isolation", "--dest", temporary)
        env.pip("download", *options, *source.options(requirement), doing=f"downloading {requirement}")
        archive = next(Path(temporary).glob("*.tar.gz"))
        with tarfile.open(archive) as content:
            content.extractall(temporary)
        archive.unlink()
        os.replace(next(Path(temporary).iterdir()), folder)
