"""The Python package indexes that the user of this controller has configured."""

from __future__ import annotations

import os
import subprocess
import sys


def pip_indexes() -> list[str]:
    """Addresses of the indexes that pip of this controller uses, its own default included.

    Reads pip's environment variables and files through pip; no address stands in this project.
    """
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    settings: dict[str, str] = {}
    # pip lists the weakest place first: a later line overrides an earlier one.
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = value.strip().strip("'\"")
    for name in ("index-url", "extra-index-url"):
        variable = os.environ.get("PIP_" + name.upper().replace("-", "_"))
        settings[name] = variable or settings.get(name, "")
    if not settings["index-url"]:
        command = [sys.executable, "-c", "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"]
        settings["index-url"] = subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
    extra = settings["extra-index-url"].replace("\\n", " ").split()
    return [address for address in (settings["index-url"], *extra) if address]
