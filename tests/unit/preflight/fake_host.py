"""A host's dnf as tests set it up: settings below a directory, and the programs dnf and rpm on PATH."""

import json
import os
import sys
from pathlib import Path

import module_run

HERE = Path(__file__).resolve().parent
DISTRIBUTION = "[baseos]\nname=BaseOS\nbaseurl=http://mirror.example.org/baseos\ngpgcheck=1\nrepo_gpgcheck=1\n"
ADDED = [
    {"id": "epel", "description": "EPEL 8", "baseurl": "http://mirror.example.org/epel/"},
    {"id": "cuda-rhel8", "description": "CUDA", "baseurl": "http://mirror.example.org/cuda/"},
]


class FakeHost:
    """Settings as files below `root`; `world` is what fake_dnf.py reads."""

    def __init__(self, directory, monkeypatch, capsys):
        self.directory, self.root = directory, directory / "root"
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.module = module_run.load("dnf_facts")
        self.world = {"repos": {}, "streams": ["nvidia-driver:470-dkms"]}
        programs = directory / "programs"
        programs.mkdir()
        for name, script in (
            ("dnf", f"exec {sys.executable} {HERE / 'fake_dnf.py'} \"$@\""), ("rpm", f"cat {directory}/installed"),
        ):
            (programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name).chmod(0o755)
        monkeypatch.setenv("FAKE_DNF", str(directory))
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        (directory / "installed").write_text("")
        self.write("/etc/dnf/dnf.conf", "[main]\ngpgcheck=1\n")
        self.write("/etc/yum.repos.d/distribution.repo", DISTRIBUTION)

    def write(self, path, text):
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def installed(self, *lines):
        (self.directory / "installed").write_text("".join(f"{line}|installed\n" for line in lines))

    def ask(self, rpms, **arguments):
        """What the module says of the host."""
        (self.directory / "world.json").write_text(json.dumps(self.world))
        given = {"repositories": ADDED, "streams": ["nvidia-driver:470-dkms"], "root": str(self.root), **arguments}
        answer = module_run.run(self.module, self.monkeypatch, self.capsys, check_mode=True, rpms=rpms, **given)
        assert "dnf" in answer, answer
        assert not answer["changed"]
        return answer["dnf"]

    def calls(self):
        path = self.directory / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
