"""A hub of one repository on loopback, which answers as the real one. As a program: small_hub.py DIRECTORY PORT.

Files of git-lfs are links to another host, which refuses a request with the hub's key. Sizes and hashes are listed if
they are asked for. An old name of the repository leads to the new one.
"""

import hashlib
import http.server
import json
import re
import sys
import threading
from pathlib import Path

NAME, OLD_NAME = "owner/tiny", "owner/old"
SHA = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".gguf", ".pth")


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, handler, host="127.0.0.1", port=0):
        super().__init__((host, port), handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self, status, headers=(), body=b""):
        self.send_response(status)
        for header in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(*header)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code, message):
        body = json.dumps({"error": message}).encode()
        self.reply(status, [("X-Error-Code", code), ("X-Error-Message", message)], body)

    def content(self, hub, name, headers):
        """A file, or the range of it that was asked for."""
        content = hub.files[name]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        headers = [*headers, ("Accept-Ranges", "bytes")]
        begin, status = 0, 200
        if asked:
            begin, end = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
            if begin >= len(content):
                return self.reply(416, [("Content-Range", f"bytes */{len(content)}")])
            status, content = 206, content[begin:end]
            headers.append(("Content-Range", f"bytes {begin}-{end - 1}/{len(hub.files[name])}"))
        body = content
        if hub.cut and name.endswith(".safetensors") and self.command == "GET":
            body, self.close_connection = content[:hub.cut], True
        self.send_response(status)
        for header in (*headers, ("Content-Length", str(len(content)))):
            self.send_header(*header)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            hub.sent[name] = hub.sent.get(name, 0) + len(body)
        return None

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, *arguments):
        """Say nothing."""


class Hub:
    """One repository.

    Attributes:
        files: content by name.
        key: what a request must bring to read files; None where all may.
        busy: answers that are 429 before the next one.
        cut: bytes after which a weights file breaks off.
        shown: what the hub says where that is not what it hands out.
        asked: (method, name) of each request for a file; sent: bytes of each file that were sent.
        keys: keys that came with requests for files.
    """

    def __init__(self, files, port=0):
        self.files, self.key, self.busy, self.cut = files, None, 0, None
        self.shown, self.sent, self.asked, self.keys = {}, {}, [], []
        outer = self

        class Store(Answers):
            """The host that has the files of git-lfs, by their hashes."""

            def do_GET(self):
                if self.headers.get("Authorization"):
                    return self.reply(400, body=b"<Error>Only one auth mechanism allowed</Error>")
                sha256 = self.path.partition("?")[0].rpartition("/")[2]
                name = next(name for name in outer.files if outer.sha256(name) == sha256)
                return self.content(outer, name, [("ETag", '"another"')])

        class Front(Answers):
            def do_GET(self):
                if outer.busy:
                    outer.busy -= 1
                    return self.reply(429, [("Retry-After", "1")], b'{"error": "Too many requests"}')
                path, _, query = self.path.partition("?")
                if OLD_NAME in path:
                    return self.reply(307, [("Location", self.path.replace(OLD_NAME, NAME, 1))])
                api = re.fullmatch(r"/api/models/(.+?)(?:/revision/([^/]+))?", path)
                file = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
                name, revision = (api or file)[1], (api or file)[2] or "main"
                if name != NAME:
                    return self.refuse(401, "RepoNotFound", "Repository not found")
                if revision not in ("main", SHA):
                    return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
                return self.file(file[3]) if file else self.listing("blobs=" in query)

            def listing(self, whole):
                found = [outer.sibling(name) if whole else {"rfilename": name} for name in outer.files]
                self.reply(200, body=json.dumps({"id": NAME, "sha": SHA, "siblings": found}).encode())

            def file(self, name):
                outer.keys.append(self.headers.get("Authorization"))
                if outer.key and outer.keys[-1] != f"Bearer {outer.key}":
                    status = 403 if outer.keys[-1] else 401
                    return self.refuse(status, "GatedRepo", f"Access to model {NAME} is restricted.")
                if name not in outer.files:
                    return self.refuse(404, "EntryNotFound", "Entry not found")
                outer.asked.append((self.command, name))
                sibling = outer.sibling(name)
                if "lfs" not in sibling:
                    return self.content(outer, name, [("X-Repo-Commit", SHA), ("ETag", f'"{sibling["blobId"]}"')])
                return self.reply(302, [
                    ("Location", f"{outer.store}/{outer.sha256(name)}?Signature=secret"), ("X-Repo-Commit", SHA),
                    ("X-Linked-Size", str(sibling["size"])), ("X-Linked-ETag", f'"{sibling["lfs"]["sha256"]}"'),
                ])

        self.httpd, self.files_host = Server(Front, port=port), Server(Store, "127.0.0.2")
        self.endpoint = f"http://127.0.0.1:{self.httpd.server_port}"
        self.store = f"http://127.0.0.2:{self.files_host.server_port}"

    def sha256(self, name):
        return hashlib.sha256(self.files[name]).hexdigest()

    def sibling(self, name):
        content = self.shown.get(name, self.files[name])
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        found = {"rfilename": name, "size": len(content), "blobId": blob}
        if name.endswith(LARGE):
            found["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return found

    def stop(self):
        for server in (self.httpd, self.files_host):
            server.shutdown()
            server.server_close()


if __name__ == "__main__":
    Hub({path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()}, int(sys.argv[2]))
    threading.Event().wait()
