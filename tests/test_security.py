"""What SECURITY.md says of this code: no network at import, nothing that runs what a file says, and where that ends."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("mmsmlp", "tools", "benchmarks") for path in (ROOT / folder).rglob("*.py"))

# Imports every module and builds a model; prints what asked for the network.
LONELY = """
import importlib, pkgutil, sys
asked = []
sys.addaudithook(lambda event, args: asked.append((event, args)) if event in {
    'socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname', 'socket.sendto', 'urllib.Request'} else None)
import mmsmlp
names = [module.name for module in pkgutil.walk_packages(mmsmlp.__path__, 'mmsmlp.')]
for name in names:
    importlib.import_module(name)
mmsmlp.create_model('tiny', features_only=True)
print(len(names), asked)
"""


def test_no_module_asks_for_the_network_when_it_is_imported():
    """Without any network where the system lets us take it away, and with an eye on what Python asks for."""
    alone = ["unshare", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True).returncode:
        alone = []
    command = [*alone, sys.executable, "-c", LONELY]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    count, asked = result.stdout.splitlines()[-1].split(" ", 1)
    assert int(count) > 30
    assert asked == "[]"


# Calls that run what they are given. A name without a dot is a built-in.
RUNNING = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.hub.load"}
UNPICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
LOADING = {"yaml.load", "yaml.unsafe_load", "yaml.full_load"}

# (file, what) -> why it may stand there. None of it runs what somebody else may have written.
ALLOWED = {
    ("benchmarks/padding/downstream.py", "torch.load"): "the checkpoint that the same command has just trained",
    ("benchmarks/stress/determinism.py", "torch.load"): "the checkpoints that the same command has just trained",
    ("benchmarks/stress/distributed.py", "torch.load"): "the same",
    ("benchmarks/stress/interrupted.py", "torch.load"): "the same",
    ("benchmarks/stress/pickles.py", "pickle"): "makes the foreign checkpoints that have to be refused",
    ("benchmarks/stress/tools.py", "torch.load"): "the checkpoint that the line itself has just written",
    ("mmsmlp/weights/checkpoint_file.py", "pickle"): "goes through a pickle with inert objects for all that it names",
}


def findings(tree: ast.AST) -> list[str]:
    """What in a file could run data as code: calls and imports, by the names above."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNPICKLING]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNPICKLING:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
            safe = isinstance(given.get("weights_only"), ast.Constant) and given["weights_only"].value is True
            if (
                name in RUNNING | LOADING
                or (name == "torch.load" and not safe)
                or (name in ("np.load", "numpy.load") and "allow_pickle" in given)
                or "shell" in given
            ):
                found.append(name)
    return found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("eval(text)", ["eval"]),
        ("network.eval()", []),
        ("exec(open(path).read())", ["exec"]),
        ("from pickle import load", ["pickle"]),
        ("import joblib.numpy_pickle", ["joblib.numpy_pickle"]),
        ("torch.load(path)", ["torch.load"]),
        ("torch.load(path, weights_only=False)", ["torch.load"]),
        ("torch.load(path, weights_only=flag)", ["torch.load"]),
        ("torch.load(path, weights_only=True)", []),
        ("np.load(path)", []),
        ("np.load(path, allow_pickle=True)", ["np.load"]),
        ("subprocess.run(line, shell=True)", ["subprocess.run"]),
        ("subprocess.run([program, argument])", []),
        ("os.system(line)", ["os.system"]),
        ("yaml.load(text)", ["yaml.load"]),
        ("yaml.safe_load(text)", []),
    ],
)
def test_what_counts_as_running_data(code, found):
    assert findings(ast.parse(code)) == found


def test_no_code_of_ours_runs_what_a_file_says():
    assert len(SOURCES) > 80
    here = {
        (str(path.relative_to(ROOT)), what) for path in SOURCES for what in findings(ast.parse(path.read_text("utf-8")))
    }
    assert here == {(file, what) for file, what in ALLOWED if (ROOT / file).exists()}


class Intruder:
    """An object whose unpickling makes a file: what somebody else's checkpoint may hold."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def foreign(tmp_path) -> tuple[Path, Path]:
    """A checkpoint that makes a folder when it is unpickled, and that folder."""
    import torch

    path, mark = tmp_path / "foreign.pth", tmp_path / "it-ran"
    torch.save({"state_dict": {}, "meta": Intruder(mark)}, path)
    return path, mark


def test_our_own_reader_of_checkpoints_runs_nothing(foreign):
    from mmsmlp.weights.spach_files import read_official

    path, mark = foreign
    with pytest.raises(ValueError, match="foreign.pth"):
        read_official(path)
    assert not mark.exists()


def test_mmengine_runs_what_a_checkpoint_says(foreign):
    """Known, and in SECURITY.md, for `load_from` and others. If this fails, that page may promise more."""
    from mmengine.runner.checkpoint import load_checkpoint
    from torch import nn

    path, mark = foreign
    load_checkpoint(nn.Identity(), str(path), map_location="cpu")
    assert mark.exists()


def test_a_config_is_code(tmp_path):
    """Known, and in SECURITY.md: reading a config runs it."""
    from mmengine.config import Config

    (tmp_path / "config.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w').close()\nmodel = dict()\n")
    Config.fromfile(tmp_path / "config.py")
    assert (tmp_path / "it-ran").exists()
