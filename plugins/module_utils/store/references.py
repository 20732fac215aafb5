"""References of the outputs of a store."""

import os

from . import address
from .errors import StoreError


class References:
    """References between the outputs of one store, by name. What a manifest says is read once: it never changes."""

    def __init__(self, root):
        self.store = os.path.join(root, "store")
        self.known = {}

    def path(self, name):
        return os.path.join(self.store, name)

    def outputs(self):
        """Names of the committed outputs, sorted."""
        return [
            name for name in address.listing(self.store)
            if address.OUTPUT.match(name) and address.is_committed(self.path(name))
        ]

    def read(self, name):
        """(names that an output refers to, sha256 of its sources, its name by its own manifest). Raises StoreError."""
        if name not in self.known:
            described = address.manifest(self.path(name))
            self.known[name] = (
                {address.name_of(path) for path in described["references"]},
                {sha256 for _name, _file, sha256 in described["sources"]},
                address.stem_of(described),
            )
        return self.known[name]

    def is_readable(self, name):
        try:
            self.read(name)
        except StoreError:
            return False
        return True

    def is_copy(self, name):
        """Return whether somebody's copy of an output lies under a name of its own: it is not the store's to remove."""
        return self.is_readable(name) and self.read(name)[2] != name

    def read_all(self):
        """Result of `read` for every output by its name, without copies and unreadable manifests."""
        return {name: self.read(name) for name in self.outputs() if self.is_readable(name) and not self.is_copy(name)}

    def closure(self, names):
        """`names` and all that they refer to, directly or not. Raises StoreError for one that is not there whole."""
        found, waiting = set(), [(name, None) for name in sorted(names)]
        while waiting:
            name, referrer = waiting.pop()
            if name in found:
                continue
            if referrer and not os.path.lexists(self.path(name)):
                raise StoreError(
                    "%s: found nothing there; expected the output that %s refers to. Remove the latter and run the "
                    "play, which makes both again." % (self.path(name), self.path(referrer))
                )
            found.add(name)
            waiting += [(lower, name) for lower in self.read(name)[0]]
        return found

    def is_referred_to(self, name):
        """Return whether another committed output refers to an output. An unreadable one refers to none."""
        return any(name in lower for other, (lower, _sources, _stem) in self.read_all().items() if other != name)

    def is_source(self, sha256):
        """Return whether a committed output was built from a source."""
        return any(sha256 in sources for _lower, sources, _stem in self.read_all().values())

    def in_order(self, names):
        """`names`, each before what it refers to; those whose manifest cannot be read as early as that allows."""
        names, seen, order = set(names), set(), []

        def visit(name):
            if name not in seen:
                seen.add(name)
                for lower in sorted(self.read(name)[0] & names if self.is_readable(name) else ()):
                    visit(lower)
                order.insert(0, name)

        for name in sorted(names, key=lambda name: (not self.is_readable(name), name)):
            visit(name)
        return order
