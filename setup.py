"""Packaging; what belongs to development tools (build system, ruff, pytest) stands in pyproject.toml."""

import atexit
import re
import shutil
import tempfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build import build
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = re.search(r"""^__version__ = ["'](.+)["']""", (HERE / "mmsmlp" / "__init__.py").read_text("utf-8"), re.M)[1]
README = HERE / "README.md"

# Two distributions own the import names mmengine, mmcv, mmdet, mmseg and mmpretrain. So the base requirements name
# neither, and these extras, which hold the exact versions that were tested together, exclude each other.
# pip builds mmcv *without* its operators where no wheel fits, and without an error: `make setup` compiles them.
ONEDL = [
    "torch==2.11.0",
    "torchvision==0.26.0",
    "onedl-mmengine==0.10.12",
    "onedl-mmcv==2.3.6",
    "onedl-mmdetection==3.5.1",
    "onedl-mmsegmentation==1.4.2",
    "onedl-mmpretrain==1.3.6",
    "onedl-mim==0.5.1",
    # mmdetection needs imaug, whose older releases would let OpenCV 5 in
    "imaug==0.4.3",
    "opencv-python-headless==4.12.0.88",
]
OPENMMLAB = [
    "torch==2.1.2",
    "torchvision==0.16.2",
    "numpy<2",
    "mmengine==0.10.7",
    "mmcv==2.1.0",
    "mmdet==3.3.0",
    "mmsegmentation==1.2.2",
    "mmpretrain==1.2.0",
    "openmim==0.3.9",
    # mmsegmentation imports these and does not ask for them
    "ftfy",
    "regex",
    "opencv-python-headless",
]

# Where mim looks for configs, scripts and the model index of an installed package. openmim looks into the package.
# onedl-mim looks into the folder of RECORD's first file, which for a distribution named like its package is the
# *.dist-info; "_" sorts before it, so that this folder of our own comes first.
MIM_FOLDERS = ("_mmsmlp_mim/.mim", "mmsmlp/.mim")


class Build(build):
    """Builds in a temporary folder: onedl-mim searches a checkout for config names, and build/ would hold copies."""

    def initialize_options(self) -> None:
        """Set the default of ``--build-base``."""
        super().initialize_options()
        self.build_base = tempfile.mkdtemp(prefix="mmsmlp_build_")
        atexit.register(shutil.rmtree, self.build_base, ignore_errors=True)


class BuildPy(build_py):
    """Adds what mim looks for to a wheel. Not to an editable tree, which has it all under its usual names."""

    def run(self) -> None:
        """Copy the configs, the tools and the model index."""
        super().run()
        if self.editable_mode:
            return
        skipped = shutil.ignore_patterns("__pycache__", "setup_env")
        for folder in MIM_FOLDERS:
            target = Path(self.build_lib, folder)
            for source in ("configs", "tools"):
                shutil.copytree(HERE / source, target / source, ignore=skipped, dirs_exist_ok=True)
            shutil.copy(HERE / "model-index.yml", target)


setup(
    name="mmsmlp",
    version=VERSION,
    description="sMLPNet for OpenMMLab, at any input size: axis MLP weights that are positionally interpolated",
    long_description=README.read_text("utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["mmsmlp", "mmsmlp.*"]),
    cmdclass={"build": Build, "build_py": BuildPy},
    python_requires=">=3.10",
    install_requires=["torch"],
    extras_require={
        "onedl": ONEDL,
        "openmmlab": OPENMMLAB,
        # the coins and photograph data sets, the sweep's table and the pictures
        "demo": ["matplotlib", "pycocotools", "rich", "scikit-image"],
        # tools/export_onnx.py, which needs torch >= 2.11 as well
        "export": ["onnx", "onnxruntime", "onnxscript"],
        # tools/web_demo.py; older gradios hold back packages that the others need
        "web": ["gradio>=6.29"],
        # seaborn is for mmsegmentation's analyze_logs, playwright for `make test-browser`
        "dev": ["hypothesis", "packaging", "playwright", "pytest", "ruff", "seaborn", "tensorboard", "timm>=1.0.20"],
        # import mmsmlp.timm
        "timm": ["timm>=1.0.20"],
    },
)
