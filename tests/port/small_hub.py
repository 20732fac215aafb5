"""A hub of one repository on loopback. As a program: small_hub.py DIRECTORY PORT, until it is ended."""

import hashlib
import http.server
import json
import sys
import threading
from pathlib import Path

NAME = "owner/tiny"
SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """One repository. files: content by name. cut: bytes after which a weights file breaks off."""

    def __init__(self, files, port=0):
        self.files = files
        self.cut, self.sent, self.asked = None, {}, []
        self.shown = {}  # what the hub says where that is not what it hands out
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def reply(self, status, headers=(), body=b""):
                self.send_response(status)
                for header in headers:
                    self.send_header(*header)
                self.end_headers()
                self.wfile.write(body)

            def missing(self, why):
                self.reply(404, [("X-Error-Code", why), ("Content-Length", "0")])

            def do_HEAD(self):
                self.file(False)

            def do_GET(self):
                if self.path.startswith("/api/models/"):
                    self.listing()
                else:
                    self.file(True)

            def listing(self):
                name, _, revision = self.path[len("/api/models/"):].partition("?")[0].partition("/revision/")
                if name != NAME:
                    return self.missing("RepoNotFound")
                if revision not in ("main", SHA):
                    return self.missing("RevisionNotFound")
                body = json.dumps({"id": NAME, "sha": SHA, "siblings": [outer.sibling(name) for name in outer.files]})
                self.reply(200, [("Content-Length", str(len(body)))], body.encode())
                return None

            def file(self, whole):
                name = self.path.partition(f"/resolve/{SHA}/")[2]
                if name not in outer.files:
                    return self.missing("EntryNotFound")
                outer.asked.append((self.command, name))
                content, sibling = outer.files[name], outer.sibling(name)
                etag = sibling["lfs"]["sha256"] if "lfs" in sibling else sibling["blobId"]
                first, _, last = (self.headers.get("Range") or "bytes=0-").partition("=")[2].partition("-")
                begin, end = int(first), int(last) + 1 if last else len(content)
                body = content[begin:end] if whole else b""
                headers = [
                    ("X-Repo-Commit", SHA), ("ETag", f'"{etag}"'), ("Accept-Ranges", "bytes"),
                    ("Content-Length", str(min(end, len(content)) - begin)),
                ]
                is_part = begin or end < len(content)
                if is_part:
                    headers.append(("Content-Range", f"bytes {begin}-{min(end, len(content)) - 1}/{len(content)}"))
                if outer.cut and whole and name.endswith(".safetensors"):
                    body = body[:outer.cut]
                    self.close_connection = True
                self.reply(206 if is_part else 200, headers, body)
                outer.sent[name] = outer.sent.get(name, 0) + len(body)
                return None

            def log_message(self, *arguments):
                """Say nothing."""

        self.httpd = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.httpd.daemon_threads = True
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.httpd.server_port}"

    def sibling(self, name):
        content = self.shown.get(name, self.files[name])
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        found = {"rfilename": name, "size": len(content), "blobId": blob}
        if name.endswith((".safetensors", ".bin", ".gguf")):
            found["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return found


if __name__ == "__main__":
    Hub({path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()}, int(sys.argv[2]))
    threading.Event().wait()
