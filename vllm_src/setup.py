"""Puts the .pth file that loads the backfill at the root of site-packages; all else is pyproject.toml's."""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithHook(build_py):
    def run(self):
        super().run()
        self.copy_file("vllm_kepler.pth", f"{self.build_lib}/vllm_kepler.pth")


setup(cmdclass={"build_py": BuildWithHook})
