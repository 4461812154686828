"""Asks a vulnerability service about every pinned release, with pip-audit in a throw-away environment of its own."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from .constraints import pins
from .process import SetupError
from .stacks import STACKS

TOOL = "pip-audit==2.10.1"
SERVICES = ("pypi", "osv")
# Any service that works knows of this one. A mirror of PyPI may serve packages and no vulnerabilities: pip-audit then
# finds none, and says so as if it had looked.
KNOWN_BAD = "jinja2==2.4.1"


def audit() -> bool:
    """Prints the known vulnerabilities of all releases in `constraints/`.

    Returns:
        Whether there are none.

    Raises:
        SetupError: no service answers, so nothing is known.
    """
    releases = read_pins([pins(stack) for stack in STACKS.values()])
    with tempfile.TemporaryDirectory() as temporary:
        python = f"{temporary}/venv/bin/python"
        for command in (
            [sys.executable, "-m", "venv", f"{temporary}/venv"],
            [python, "-m", "pip", "-qq", "install", TOOL],
        ):
            if subprocess.call(command):
                raise SetupError(f"audit: {' '.join(command[-2:])} failed; what it printed above tells why")
        service = choose_service(python, Path(temporary))
        answers = {}
        for number, layer in enumerate(layers(list(releases)), 1):
            print(f"audit: asking {service} about {len(layer)} releases ({number})", flush=True)
            answers.update(ask(python, service, layer, Path(temporary)))
    lines, clean = report(releases, answers)
    print(f"audit: {len(releases)} releases, asked of {service} on {datetime.date.today()}")
    print("\n".join(lines))
    return clean


def read_pins(files: list[Path]) -> dict[str, list[str]]:
    """Reads constraints files, for every Python.

    Returns:
        name==version -> the sets that it belongs to.
    """
    found: dict[str, list[str]] = {}
    for path in files:
        lines = [line.split(" ;")[0] for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
        for release in lines:
            found.setdefault(release, []).append(path.stem)
    return dict(sorted(found.items()))


def layers(releases: list[str]) -> list[list[str]]:
    """Divides releases so that no list holds two of one package, which pip-audit refuses."""
    divided: list[dict[str, str]] = []
    for release in releases:
        name = release.split("==")[0]
        free = next((layer for layer in divided if name not in layer), None)
        if free is None:
            free = {}
            divided.append(free)
        free[name] = release
    return [list(layer.values()) for layer in divided]


def choose_service(python: str, folder: Path) -> str:
    """Returns the first service that knows of a release that is known to be bad.

    Raises:
        SetupError: none does.
    """
    for service in SERVICES:
        if any(dependency.get("vulns") for dependency in ask(python, service, [KNOWN_BAD], folder).values()):
            return service
    raise SetupError(
        "audit: nothing was audited: neither PyPI's JSON interface nor osv.dev can be reached from here, or what "
        f"answers in their place does not even know of {KNOWN_BAD}; run it where pypi.org itself can be reached"
    )


def ask(python: str, service: str, releases: list[str], folder: Path) -> dict[str, dict]:
    """Runs pip-audit on pinned releases, without resolving or installing anything.

    Returns:
        name==version, or only the name where the service does not know it -> pip-audit's answer; {} if it failed.
    """
    requirements, output = folder / "requirements.txt", folder / "answer.json"
    requirements.write_text("\n".join(releases) + "\n")
    output.unlink(missing_ok=True)
    command = [python, "-m", "pip_audit", "--disable-pip", "--no-deps", "-r", str(requirements), "-s", service]
    command += ["--progress-spinner", "off", "-f", "json", "-o", str(output), "--timeout", "30"]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "NO_COLOR": "1"})
    if not output.exists():
        return {}
    dependencies = json.loads(output.read_text())["dependencies"]
    versions = dict(release.split("==") for release in releases)
    return {f"{d['name']}=={d.get('version', versions.get(d['name']))}": d for d in dependencies}


def report(releases: dict[str, list[str]], answers: dict[str, dict]) -> tuple[list[str], bool]:
    """Lines for the user: a vulnerability each, then the releases that were not looked at.

    Args:
        releases: name==version -> the sets that it belongs to.
        answers: name==version -> pip-audit's answer.

    Returns:
        The lines, and whether every release was looked at and none has a known vulnerability.
    """
    lines = []
    for release, stacks in releases.items():
        for vulnerability in answers.get(release, {}).get("vulns", []):
            fixed = ", ".join(vulnerability["fix_versions"]) or "no release"
            names = ", ".join([vulnerability["id"], *vulnerability.get("aliases", [])])
            lines.append(f"{release} ({', '.join(stacks)}): {names}; fixed in {fixed}")
    unseen = [release for release in releases if "vulns" not in answers.get(release, {})]
    if unseen:
        lines.append(f"not looked at, since the service does not know them: {', '.join(unseen)}")
    return lines or ["no known vulnerabilities"], not lines
