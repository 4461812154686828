"""The set-up with hashes: the locks, and pip itself on files that are the right ones or not; nothing is downloaded."""

import hashlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from setup_env import cli, constraints, environment, process, sources  # noqa: E402  (tools/ is no package)
from setup_env.stacks import STACKS  # noqa: E402

ONEDL = STACKS["onedl"]
here_are_hashes = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="the lock is for Linux on x86_64"
)


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_the_lock_holds_the_same_releases_with_hashes(stack):
    pins = [line for line in constraints.pins(stack).read_text().splitlines() if not line.startswith("#")]
    locked = sources.read_lock(constraints.lock(stack))
    assert [line.split(" \\\n")[0] for lines in locked.values() for line in lines] == pins
    for lines in locked.values():
        for line in lines:
            hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line)
            assert hashes
            assert line.count("--hash") == len(hashes) == len(set(hashes))


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_the_build_tools_and_everything_named_in_the_set_up_are_locked(stack):
    locked = sources.read_lock(constraints.lock(stack))
    assert {tool.split("==")[0] for tool in stack.build_tools} <= set(locked)
    assert {stack.mmcv, "torch", "torchvision", "opencv-python-headless"} <= set(locked)


UV = "a==1 \\\n    --hash=sha256:aa \\\n    --hash=sha256:ab\nb-c==2.0+x \\\n    --hash=sha256:bb\n"


def test_what_uv_writes_is_read():
    assert constraints.parse(UV) == {"a==1": ["aa", "ab"], "b-c==2.0+x": ["bb"]}


def test_hashes_continue_a_line_with_its_marker(tmp_path):
    line = constraints.with_hashes('a==1 ; python_version == "3.10"', constraints.parse(UV))
    assert line == 'a==1 ; python_version == "3.10" \\\n    --hash=sha256:aa \\\n    --hash=sha256:ab\n'
    (tmp_path / "lock").write_text("# a comment\n" + line + constraints.with_hashes("a==1", constraints.parse(UV)))
    assert [text.count("--hash") for text in sources.read_lock(tmp_path / "lock")["a"]] == [2, 2]


# pip itself, on a wheel of ours.


@pytest.fixture
def env(tmp_path, monkeypatch):
    """An environment with Python and this one's pip, which knows of no index and no configuration."""
    made = environment.Environment(tmp_path / "venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made.folder], check=True)
    (made.packages / "pip").symlink_to(next(iter(importlib.util.find_spec("pip").submodule_search_locations)))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return made


def wheel(folder: Path, name: str, requires: str = "") -> Path:
    """Writes a wheel with one module."""
    folder.mkdir(exist_ok=True)
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", "value = 1\n")
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return path


def locked(env, *paths: Path) -> sources.Source:
    """A source whose lock holds the hashes of these wheels."""
    pins, lock = env.folder / "pins.txt", env.folder / "lock.txt"
    releases = {f"{p.name.split('-')[0]}==1.0": [hashlib.sha256(p.read_bytes()).hexdigest()] for p in paths}
    pins.write_text("\n".join(releases) + "\n")
    lock.write_text("".join(constraints.with_hashes(release, releases) for release in releases))
    return sources.Source(pins, sources.read_lock(lock), env.folder)


def install(env, source: sources.Source, folder: Path, *names: str) -> None:
    env.pip("install", "--no-index", "--find-links", str(folder), *source.options(*names), doing="installing")


def test_a_file_with_its_hash_is_installed_without_asking_for_more(env, tmp_path):
    path = wheel(tmp_path / "links", "tiny", requires="absent")
    install(env, locked(env, path), path.parent, "tiny==1.0")
    assert (env.packages / "tiny.py").exists()


def test_another_file_under_the_same_name_is_refused_in_one_line(env, tmp_path):
    path = wheel(tmp_path / "links", "tiny")
    source = locked(env, path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("intruder.py", "")
    with pytest.raises(process.ProcessError, match="is not the one whose hash stands in constraints/") as error:
        install(env, source, path.parent, "tiny")
    assert error.value.known  # so that nothing else is tried
    assert "HASHES=0" in str(error.value)
    assert not list(env.packages.glob("tiny*"))
    assert "tiny" in env.log.read_text()


def test_a_package_missing_from_the_lock_is_not_fetched_from_anywhere(env, tmp_path, monkeypatch):
    """The last step, this package itself, has to find all that it needs installed."""
    path = wheel(tmp_path / "links", "tiny", requires="other")
    wheel(tmp_path / "links", "other")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    with pytest.raises(process.ProcessError, match="No matching distribution found for other"):
        env.pip("install", str(path), doing="installing", env=cli.NOWHERE)
    env.pip("install", str(path), doing="installing")  # it would have been found


def test_without_hashes_the_pins_and_the_names_are_given(env):
    source = sources.Source(Path("pins.txt"), {}, env.folder)
    assert source.options("torch", "wheel==1") == ("-c", "pins.txt", "torch", "wheel==1")
    assert "--no-index" not in source.wheels("mmcv", "mmcv==2")


def test_with_hashes_a_wheel_of_mmcv_comes_from_the_users_own_folders_alone(env, tmp_path):
    source = locked(env, wheel(tmp_path / "links", "tiny"))
    assert "--no-index" in source.wheels("mmcv", "mmcv==2")


# When hashes are checked.


@here_are_hashes
@pytest.mark.parametrize(
    ("variables", "asked", "hashed", "said"),
    [
        ({}, None, True, ""),
        ({"PIP_INDEX_URL": "https://mirror.example/simple"}, None, True, ""),  # the same files
        ({"PIP_FIND_LINKS": "/some/wheels"}, None, False, "find-links, whose files have others; HASHES=1"),
        ({"PIP_EXTRA_INDEX_URL": "https://example.org/cpu"}, None, False, "extra-index-url, whose files have others"),
        ({"PIP_FIND_LINKS": "/some/wheels"}, True, True, ""),
        ({}, False, False, ""),
    ],
)
def test_hashes_are_checked_unless_pip_is_told_of_other_files(env, monkeypatch, variables, asked, hashed, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    source, note = sources.choose_source(ONEDL, env, asked)
    assert source.hashed == hashed
    assert said in note
    assert bool(note) == bool(said)


def test_hashes_on_another_kind_of_machine_are_refused_or_left_out(env, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    source, note = sources.choose_source(ONEDL, env, None)
    assert not source.hashed
    assert "Linux on x86_64" in note
    with pytest.raises(process.SetupError, match="leave HASHES=1 out"):
        sources.choose_source(ONEDL, env, True)


@pytest.mark.slow
@here_are_hashes
def test_an_environment_made_without_hashes_is_made_anew_for_them_and_only_then(env, capsys):
    interpreter = cli.probe(sys.executable)
    with env.locked():
        assert cli.prepare(ONEDL, env, interpreter, None).hashed  # made now, since its pip was no real one
        marker = env.packages / "marker"
        marker.touch()
        assert cli.prepare(ONEDL, env, interpreter, None).hashed
        assert not cli.prepare(ONEDL, env, interpreter, False).hashed
        assert marker.exists()
        capsys.readouterr()
        assert not cli.prepare(ONEDL, env, interpreter, None).hashed
        assert "hashes are not checked, as when this environment was made" in capsys.readouterr().out
        (env.folder / "wheels").mkdir()
        assert cli.prepare(ONEDL, env, interpreter, True).hashed
    assert not marker.exists()
    assert not (env.folder / "wheels").exists()  # compiled from a file that nobody looked at


def test_asking_for_hashes_is_work_to_do_where_there_are_none(env):
    env.stamp(cli.describe(ONEDL, env, cli.choose_operators(env.torch[1])))
    assert cli.is_complete(ONEDL, env, None)
    assert not cli.is_complete(ONEDL, env, None, hashes=True)
    env.hashed = True
    assert cli.is_complete(ONEDL, env, None, hashes=True)
