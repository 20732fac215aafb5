"""What stands in for `vllm serve`: its log, its API and one rank, which do what the file `orders.json` says.

`port`; `log`: lines to write first; `repeat`: a line to write over and over instead of answering; `seconds`: how long a
start takes; `status`: end with it; `hang`: make no tokens; `busy`: make tokens but answer no question; `deaf`: close
the port; `refuse`: status of the answer to a question; `running`: requests that run.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DIRECTORY = Path(sys.argv[1])


def orders():
    return json.loads((DIRECTORY / "orders.json").read_text())


class Handler(BaseHTTPRequestHandler):
    def answer(self, status, body, **headers):
        content = body.encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, text, *values):
        print(f'INFO:     127.0.0.1:1 - "{self.requestline}" {values[1]} OK', flush=True)

    def is_held(self):
        held = Path(os.environ.get("VLLM_SERVING_HELD", "/nonexistent"))
        return held.exists() and self.headers["X-Kepler-Held"] != held.read_text()

    def do_GET(self):
        if self.path.startswith("/health") and self.is_held():
            self.answer(503, "")
        elif self.path.startswith("/health"):
            if (Path(os.environ["RUNTIME_DIRECTORY"]) / "draining").exists():
                self.answer(503, "", **{"X-Requests-Running": orders()["running"]})
            else:
                self.answer(200, "")
        else:
            self.server.made += orders()["busy"]
            self.answer(200, f'vllm:generation_tokens_total{{model_name="x"}} {self.server.made}\n'
                             f'vllm:num_requests_running{{model_name="x"}} {orders()["running"]}\n')

    def do_POST(self):
        while orders()["hang"] or orders()["busy"]:
            time.sleep(0.05)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.is_held():
            self.answer(503, "held")
        elif self.headers["Authorization"] != f"Bearer {os.environ['VLLM_API_KEY']}":
            self.answer(401, "no key")
        elif refused := orders()["refuse"]:
            self.answer(refused, "no completions here")
        else:
            self.server.made += body["max_tokens"]
            self.answer(200, json.dumps({"choices": [{"text": "a"}]}))


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    made = 0


def main():
    said = orders()
    (DIRECTORY / "environment.json").write_text(json.dumps(dict(os.environ)))
    # A rank: it ignores SIGTERM, holds the pipe, and outlives whoever does not kill it.
    sleeper = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(600)"
    rank = subprocess.Popen([sys.executable, "-c", sleeper])
    (DIRECTORY / "rank").write_text(str(rank.pid))
    for line in said["log"]:
        print(line, flush=True)
    while said["repeat"]:
        print(f"WARNING {time.time()} {said['repeat']}", flush=True)
        time.sleep(0.1)
    time.sleep(said["seconds"])
    server = Server(("127.0.0.1", said["port"]), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:
        if orders()["deaf"]:
            server.server_close()
        if orders()["status"] is not None:
            os._exit(orders()["status"])
        time.sleep(0.05)


main()
