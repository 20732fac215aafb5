"""Shares the tiny models and the process that serves them with the port's tests."""

import os
import sys
from pathlib import Path

PORT = Path(__file__).resolve().parent.parent / "port"
sys.path.insert(0, str(PORT))
os.environ["VLLM_KEPLER_DEVICE"] = ""
os.environ["VLLM_KEPLER_VERIFY"] = "1"

import importlib.util  # noqa: E402

spec = importlib.util.spec_from_file_location("port_conftest", PORT / "conftest.py")
port_conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(port_conftest)
seed, tiny = port_conftest.seed, port_conftest.tiny
