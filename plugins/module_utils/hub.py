"""A client of the Hugging Face hub for what says what a model is: its list of files, and ranges of them."""

import json
import time
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from .checkpoint.files import MAX_HEADER
from .checkpoint.heads import wait_of
from .errors import KeplerError, reason_of

# How often a busy hub is asked again, and the longest wait in seconds.
TRIES, LONGEST_WAIT = 3, 60
TIMEOUT = 30


class HubError(KeplerError):
    """What the hub does not give."""


class _Redirects(HTTPRedirectHandler):
    """Follows the hub to the host that has the files, without the key, and to a repository's new name."""

    def redirect_request(self, request, stream, code, message, headers, url):
        found = HTTPRedirectHandler.redirect_request(self, request, stream, code, message, headers, url)
        if found is not None and urlsplit(url)[:2] != urlsplit(request.full_url)[:2]:
            found.remove_header("Authorization")
        return found


class Repository(object):
    """One repository at a revision.

    Attributes:
        files: bytes of each file, by its name.
        commit: the revision as a commit.
    """

    def __init__(self, endpoint, name, revision="main", token=None):
        self._endpoint, self._name, self._token = endpoint.rstrip("/"), name, token
        self._opener = build_opener(_Redirects)
        path = "/api/models/%s/revision/%s?blobs=true" % (name, quote(revision, safe=""))
        try:
            listing = json.loads(self._ask(path, {}, MAX_HEADER)[1].decode("utf-8"))
            self.files = {str(one["rfilename"]): max(0, int(one.get("size") or 0)) for one in listing["siblings"]}
            self.commit = str(listing.get("sha") or revision)
        except (ValueError, KeyError, TypeError):
            raise HubError("an answer that lists no files at %s%s" % (self._endpoint, path), "an answer of the hub")

    def read(self, name, first, last):
        """Bytes of a file from the first on, up to the one before the last. Raises HubError."""
        if first >= last:
            return b""
        path = "/%s/resolve/%s/%s" % (self._name, quote(self.commit, safe=""), quote(name))
        status, content = self._ask(path, {"Range": "bytes=%d-%d" % (first, last - 1)}, last)
        # A hub that knows no ranges answers with the whole.
        return content[first:] if status == 200 else content[:last - first]

    def _ask(self, path, headers, limit):
        """(status, at most `limit` bytes of the body)."""
        headers = dict(headers, **({"Authorization": "Bearer " + self._token} if self._token else {}))
        for left in range(TRIES, -1, -1):
            try:
                with self._opener.open(Request(self._endpoint + path, headers=headers), timeout=TIMEOUT) as answer:
                    return answer.getcode(), answer.read(limit)
            except HTTPError as error:
                wait = wait_of(error.code, error.headers, LONGEST_WAIT)
                if wait is None or not left:
                    raise self._refused(error, path)
                time.sleep(wait)
            # A ValueError is about an address that is none.
            except (URLError, OSError, HTTPException, ValueError) as error:
                raise HubError(
                    "no answer of %s (%s)" % (self._endpoint, reason_of(error)),
                    "the hub. Check the network, set HF_ENDPOINT to a mirror, or name a directory",
                )
        raise AssertionError("unreachable")

    def _refused(self, error, path):
        code = error.headers.get("X-Error-Code") or ""
        if code == "RevisionNotFound":
            return HubError("no such revision of %s" % self._name, "a branch or a commit of it")
        if code == "GatedRepo":
            return HubError("a gated repository (status %d)" % error.code,
                            "one that may be read. Accept its terms, then set HF_TOKEN")
        if code == "RepoNotFound" or (error.code in (401, 403, 404) and path.startswith("/api/")):
            return HubError("no such repository at %s (status %d)" % (self._endpoint, error.code),
                            "OWNER/NAME on the hub, or a directory. A private one needs HF_TOKEN")
        found = "status %d of %s%s" % (error.code, self._endpoint, path)
        return HubError(found, "an answer of the hub. Try again later")
