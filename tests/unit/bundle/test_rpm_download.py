"""Packages of the offline bundle: each is signed by a key that the host's repositories name."""

import module_run
import pytest

rpm_download = module_run.load("rpm_download")
# What dnf says of a package's signature: fine, a key that is not imported, and worse.
FINE, UNKNOWN_KEY, BROKEN = (0, ""), (1, "Public key is not installed"), (2, "is not signed")


class Base:
    """A dnf that judges packages by what is queued for them, and notes whose keys it imports."""

    def __init__(self, **judgments):
        self.judgments, self.imported = {name: list(said) for name, said in judgments.items()}, []

    def package_signature_check(self, package):
        return self.judgments[package].pop(0)

    def package_import_key(self, package, askcb):
        assert askcb()
        self.imported.append(package)


def test_key_of_a_repository_is_imported_when_it_is_needed():
    base = Base(kernel=[FINE], dkms=[UNKNOWN_KEY, FINE])
    rpm_download.check_signatures(base, ["kernel", "dkms"])
    assert base.imported == ["dkms"]


@pytest.mark.parametrize("said", [[BROKEN], [UNKNOWN_KEY, UNKNOWN_KEY], [UNKNOWN_KEY, BROKEN]])
def test_package_without_a_good_signature_is_refused(said):
    with pytest.raises(ValueError, match="dkms: "):
        rpm_download.check_signatures(Base(kernel=[FINE], dkms=said), ["kernel", "dkms"])
