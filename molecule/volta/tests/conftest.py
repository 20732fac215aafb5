"""The stand-in of the fleet `volta`."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(PROJECT / "molecule" / "shared"))

from standin import hosts  # noqa: E402
from standin.settings import VOLTA  # noqa: E402
from standin.testing import pytest_runtest_makereport, reach  # noqa: E402, F401

# The model's name in the example with sessions, and where its balancer listens on the host.
MODEL, BALANCER = "qwen2.5-7b", "http://127.0.0.1:8080"


class Asker:
    """What programs of the host ask its servers."""

    def __init__(self, host: Any) -> None:
        self.host = host

    def __call__(self, url: str, session: str = "", **body: Any) -> tuple[int, Any]:
        """Ask for a completion; status and answer."""
        body = {"model": MODEL, "max_tokens": 4, "temperature": 0, **body}
        header = f"-H 'X-Session-ID: {session}'" if session else ""
        printed = self.host.check_output(
            ". /etc/kepler-standin/api-key.env; curl --silent --max-time 120 --write-out '\n%%{http_code}' "
            '-H "Authorization: Bearer $VLLM_API_KEY" -H "Content-Type: application/json" '
            f"{header} -d %s {url}/v1/completions", json.dumps(body),
        )
        answer, _, status = printed.rpartition("\n")
        return int(status), json.loads(answer)

    def text(self, url: str, session: str = "", **body: Any) -> str:
        status, answer = self(url, session, **body)
        assert status == 200, answer
        text: str = answer["choices"][0]["text"]
        return text

    def served_by(self) -> list[str]:
        """Port of the server that answered, for each completion that the balancer has handed on."""
        log = self.host.check_output("journalctl --no-pager --output cat --identifier kepler_balancer")
        return re.findall(r" POST /v1/completions 200 [^\[]*\[[^\]]*:(\d+)\]", log)


@pytest.fixture(scope="session", autouse=True)
def v100():
    """The host. What it has unpacked is kept for the next run."""
    host = reach(VOLTA, "v100-standin")
    hosts.keep_outputs(VOLTA)
    return host


@pytest.fixture(scope="session")
def key() -> str:
    return (VOLTA.directory / "api-key").read_text()


@pytest.fixture(scope="session")
def ask(v100):
    return Asker(v100)
