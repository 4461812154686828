"""mim with this package from a wheel and in editable mode, in environments of their own, by real processes."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from stack import UPSTREAM

from mmsmlp.photos import write_patches

ROOT = Path(__file__).parents[1]
NAME = "smlpnet-mini_photos.py"
SHORT = ["train_cfg.max_iters=1", "train_cfg.val_interval=1", "default_hooks.checkpoint.interval=1"]
PARTS = ("mmsmlp", "configs", "tools", "setup.py", "pyproject.toml", "README.md", "LICENSE", "model-index.yml")
INSTALLATIONS = ["wheel", "editable"]


def call(*command, cwd: Path, fails: bool = False) -> str:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"OMP_NUM_THREADS": "1", "PAGER": "cat", "COLUMNS": "200"}
    result = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert (result.returncode != 0) == fails, (result.stdout + result.stderr)[-3000:]
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of what is installed, without the folders of this checkout that hold anything else."""
    folder = tmp_path_factory.mktemp("clone") / "mmsmlp-clone"
    folder.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, folder)
    return folder


def pip(*arguments, cwd: Path) -> None:
    """No index: what it would have to look for there is a failure."""
    call(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, "--no-index", "--no-deps", cwd=cwd)


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "-w", out, checkout, cwd=out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module", params=INSTALLATIONS)
def environment(request, tmp_path_factory) -> tuple[str, Path]:
    """How this package is installed, and the Python of an environment that borrows all the others from ours."""
    folder = tmp_path_factory.mktemp(request.param) / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin/python"
    # By a .pth file, the last in the alphabet, our packages come after the environment's own; theirs are not read.
    own = next((folder / "lib").glob("python*/site-packages"))
    (own / "zz_borrowed.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    # As pip writes it. `python -m mim` in a checkout reads the metadata of the egg-info folder there instead.
    script = python.with_name("mim")
    script.write_text(f"#!{python}\nimport sys\nfrom mim.cli import cli\nsys.exit(cli())\n")
    script.chmod(0o755)
    if request.param == "wheel":
        pip("--python", python, "install", request.getfixturevalue("wheel"), cwd=folder)
    else:
        # as `make setup` does it with either set
        mode = ["--no-use-pep517"] if UPSTREAM else ["--config-settings", "editable_mode=compat"]
        clone = request.getfixturevalue("checkout")
        pip("--python", python, "install", "--no-build-isolation", *mode, "-e", clone, cwd=folder)
    return request.param, python


@pytest.fixture(scope="module")
def user(environment, checkout, tmp_path_factory) -> Path:
    """The folder in which a user stands: the clone where it is installed in editable mode, else any."""
    folder = checkout if environment[0] == "editable" else tmp_path_factory.mktemp("user")
    write_patches(folder / "data/photos")
    return folder


@pytest.fixture(scope="module")
def config(environment) -> str:
    """What a user calls the config: its name, or where mim cannot find it by that (docs/usage.md), its path."""
    return f"configs/demo/{NAME}" if UPSTREAM and environment[0] == "editable" else NAME


def mim(environment, user: Path, *arguments, fails: bool = False) -> str:
    return call(environment[1].with_name("mim"), *arguments, cwd=user, fails=fails)


@pytest.mark.slow
def test_this_package_is_the_installed_one(environment, user):
    where = call(environment[1], "-c", "import mmsmlp; print(mmsmlp.__file__)", cwd=user.parent)
    wanted = user if environment[0] == "editable" else environment[1].parents[1]
    assert Path(where.strip()).is_relative_to(wanted)


@pytest.mark.slow
def test_train_by_name_twice_then_test_by_name(environment, user, config):
    for _ in range(2):  # the second time a work directory holds a copy of the config
        output = mim(environment, user, "train", "mmsmlp", config, "--cfg-options", *SHORT)
        assert "Training finished successfully" in output
    work = user / "work_dirs" / Path(NAME).stem
    assert (work / "iter_1.pth").is_file()
    tested = mim(environment, user, "test", "mmsmlp", config, "--checkpoint", work / "iter_1.pth", "--tta")
    assert "accuracy/top1" in tested


@pytest.mark.slow
def test_train_by_path_whatever_copies_there_are(environment, user):
    path = ROOT / "configs/demo" / NAME
    (user / "work_dirs/other").mkdir(parents=True, exist_ok=True)
    copy = shutil.copy(path, user / "work_dirs/other")  # as the toolboxes' own scripts leave it
    try:
        mim(environment, user, "train", "mmsmlp", path, "--work-dir", "work_dirs/path", "--cfg-options", *SHORT)
        if environment[0] == "editable":  # onedl-mim searches the whole checkout, openmim the package's folder
            message = "can not find" if UPSTREAM else "multiple config files"
            assert message in mim(environment, user, "train", "mmsmlp", NAME, fails=True)
    finally:
        Path(copy).unlink()


@pytest.mark.slow
def test_a_toolboxs_name_and_a_path(environment, user):
    """Its own scripts, outside of the checkout since they leave a copy of the config."""
    path, work = ROOT / "configs/demo" / NAME, user.parent / "toolbox"
    grid = ["--work-dir", work / "grid", "--search-args", "--optim_wrapper.optimizer.lr 0.001 0.002"]
    mim(environment, user, "train", "mmpretrain", path, "--work-dir", work, "--cfg-options", *SHORT)
    weights = ["--checkpoint", work / "iter_1.pth", "--work-dir", work]
    assert "accuracy/top1" in mim(environment, user, "test", "mmpretrain", path, *weights)
    mim(environment, user, "gridsearch", "mmpretrain", path, *grid, "--cfg-options", *SHORT)
    assert len(list(work.glob("grid*/iter_1.pth"))) == 2


@pytest.mark.slow
def test_two_processes(environment, user, config):
    launcher = ["--launcher", "pytorch", "--gpus", "2", "--work-dir", "work_dirs/two"]
    output = mim(environment, user, "train", "mmsmlp", config, *launcher, "--cfg-options", *SHORT)
    assert "Distributed training: True" in output
    assert "GPU number: 2" in output


@pytest.mark.slow
def test_run_finds_the_tools(environment, user):
    """By the usage line of a call without arguments: `-h` mim takes for itself, and refuses it for others' packages."""
    assert "usage: get_flops.py" in mim(environment, user, "run", "mmsmlp", "get_flops", fails=True)


@pytest.mark.slow
def test_search_lists_the_models_with_their_fields(environment, user):
    mim(environment, user, "search", "mmsmlp", "--json", user / "found.json")
    found = json.loads((user / "found.json").read_text())
    names = {model["Name"] for path in metafiles() for model in yaml.safe_load(path.read_text())["Models"]}
    assert set(found["config"]) == names
    assert found["photos/top_1_accuracy"]["smlpnet-mini_photos"] > 70
    shown = mim(environment, user, "search", "mmsmlp", "--config", "smlpnet-mini_photos", "--display-width", "200")
    assert "configs/demo/smlpnet-mini_photos.py" in shown


@pytest.mark.slow
def test_gridsearch(environment, user, config):
    search = ["--work-dir", "work_dirs/grid", "--search-args", "--optim_wrapper.optimizer.lr 0.001 0.002"]
    output = mim(environment, user, "gridsearch", "mmsmlp", config, *search, "--cfg-options", *SHORT)
    assert output.count("finished successfully") >= 2
    for rate in (0.001, 0.002):
        log = user / f"work_dirs/grid_search_optim_wrapper.optimizer.lr_{rate}"
        assert (log / "iter_1.pth").is_file()


@pytest.mark.slow
def test_a_wheel_leaves_no_copies_of_configs_in_the_checkout(wheel, checkout):
    assert [p.parent for p in checkout.rglob("smlpnet-tiny_8xb128_in1k.py")] == [checkout / "configs/classification"]


@pytest.mark.slow
def test_a_wheel_holds_configs_tools_and_the_index_where_each_mim_looks(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    configs = {str(p.relative_to(ROOT)) for p in (ROOT / "configs").rglob("*.*") if p.suffix in (".py", ".yml", ".md")}
    tools = {str(p.relative_to(ROOT)) for p in (ROOT / "tools").glob("*.py")}
    for folder in ("_mmsmlp_mim/.mim", "mmsmlp/.mim"):
        inside = {n.removeprefix(f"{folder}/") for n in names if n.startswith(f"{folder}/")}
        assert inside == configs | tools | {"model-index.yml"}
    assert not [n for n in names if "setup_env" in n or "__pycache__" in n]


def metafiles() -> list[Path]:
    return sorted((ROOT / "configs").glob("*/metafile.yml"))


@pytest.mark.parametrize("path", metafiles(), ids=lambda p: p.parent.name)
def test_a_metafile_names_configs_that_exist_and_results_that_the_readme_has(path):
    contents = [yaml.safe_load(file.read_text()) for file in metafiles()]
    collections = {c["Name"] for content in contents for c in content.get("Collections", [])}
    for model in yaml.safe_load(path.read_text())["Models"]:
        assert model["In Collection"] in collections
        assert (ROOT / model["Config"]).is_file()
        assert Path(model["Config"]).stem == model["Name"]
        for result in model.get("Results", []):
            for figure in result["Metrics"].values():
                assert re.search(rf"\b{figure}\b", (ROOT / "README.md").read_text("utf-8"))


@pytest.mark.parametrize("path", metafiles(), ids=lambda p: p.parent.name)
def test_a_metafiles_schedule_is_its_configs(path):
    for model in yaml.safe_load(path.read_text())["Models"]:
        cfg = Config.fromfile(ROOT / model["Config"])
        data = model["Metadata"]
        key, length = ("Iterations", "max_iters") if "Iterations" in data else ("Epochs", "max_epochs")
        assert data[key] == cfg.train_cfg[length]
        batch = cfg.get("auto_scale_lr", {}).get("base_batch_size", cfg.train_dataloader.batch_size)
        assert data["Batch Size"] == batch
