"""An OpenAI-compatible server that answers as a model would, or as a test says."""

import http.server
import json
import math
import threading
import zlib

WORDS = [" the", " fox", " jumps", " over", " a", " lazy", " dog", " and", " then", " it", " sleeps", " again"]


def tokens(prompt, count):
    """The greedy answer to a prompt: tokens that depend on it."""
    seed = zlib.crc32(prompt.encode())
    return [WORDS[(seed + place) % len(WORDS)] for place in range(count)]


class Server:
    """answer: function of (path, body) that returns a status and a body in place of the model's; None: the model's."""

    def __init__(self):
        self.answer = lambda path, body: None
        self.logprob, self.end_of_stream, self.version = -0.25, "[DONE]", "0.9.2+empty"
        self.most, self.running, self.lock = 0, 0, threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def reply(self, status, body):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def do_GET(self):
                self.reply(200, {"data": [{"id": "m", "max_model_len": 512}], "version": outer.version})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.running += 1
                    outer.most = max(outer.most, outer.running)
                try:
                    found = outer.answer(self.path, body)
                    if found:
                        self.reply(*found)
                    elif body.get("stream"):
                        self.stream(body)
                    else:
                        self.whole(body)
                finally:
                    with outer.lock:
                        outer.running -= 1

            def said(self, body):
                prompt = body.get("prompt") or body["messages"][-1]["content"]
                return tokens(prompt, body["max_tokens"])

            def whole(self, body):
                said = self.said(body)
                if "messages" in body:
                    self.reply(200, {"choices": [{"message": {"content": "".join(said)}}]})
                    return
                likely = [{word: outer.logprob, " other": math.log(0.1)} for word in said]
                logprobs = {"tokens": said, "token_logprobs": [outer.logprob] * len(said), "top_logprobs": likely}
                self.reply(200, {"choices": [{"text": "".join(said), "logprobs": logprobs}]})

            def stream(self, body):
                self.send_response(200)
                self.end_headers()
                for word in self.said(body):
                    part = {"delta": {"content": word}} if "messages" in body else {"text": word}
                    self.wfile.write(f"data: {json.dumps({'choices': [part]})}\n\n".encode())
                self.wfile.write(f"data: {outer.end_of_stream}\n\n".encode() if outer.end_of_stream else b"")

            def log_message(self, *arguments):
                """Say nothing."""

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.httpd.daemon_threads = True
        self.port = self.httpd.server_port
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()
