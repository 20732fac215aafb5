"""The bill of materials of a real, small generation."""

import json
import re

import pytest
from module_utils.store import address, build, generation, sbom
from recipes import needs_namespaces, recipe, source

pytestmark = needs_namespaces
METADATA = """\
Metadata-Version: 2.1
Name: Some_Package
Version: 4.2
License: Apache-2.0
"""


@pytest.fixture
def bill(root, tmp_path):
    (tmp_path / "a.tar").write_text("a")
    base = recipe(name="base", toolchain=["gcc-toolset-10-gcc-0:10.3.1-1.2.el8_5.x86_64", "g++ (GCC) 10"])
    build.realise(root, base, [], [])
    info = '"$out/site-packages/some_package-4.2.dist-info"'
    top = recipe(
        inputs={"base": address.output_path(root, base)}, sources=[source(tmp_path / "a.tar")],
        builder="mkdir -p %s; cat > %s/METADATA <<'END'\n%sEND\n" % (info, info, METADATA),
    )
    build.realise(root, top, [], [])
    outputs = {made["name"]: address.output_path(root, made) for made in (base, top)}
    wanted = {"outputs": outputs, "kernel": "4.18", "driver": "470", "lock_hash": "l"}
    generation.ensure(root, wanted, ["dkms-0:3.3.0-1.el8.noarch", "tar-2:1.30-11.el8_10.x86_64"])
    made = sbom.sbom(root, 1)
    assert sbom.sbom(root, 1) == made
    return json.loads(json.dumps(made))


def every(components):
    for component in components:
        yield component
        for inner in every(component.get("components", [])):
            yield inner


def test_it_is_cyclonedx(bill):
    """What the specification asks of every document."""
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.5", 1)
    assert re.match("^urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", bill["serialNumber"])
    assert re.match(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", bill["metadata"]["timestamp"])
    components = list(every(bill["components"])) + [bill["metadata"]["component"]]
    references = [component["bom-ref"] for component in components]
    assert len(set(references)) == len(references)
    for component in components:
        assert component["type"] in ("application", "library", "file")
        assert component["name"]
    for dependency in bill["dependencies"]:
        assert set([dependency["ref"]] + dependency["dependsOn"]) <= set(references)


@pytest.mark.parametrize(("nevra", "purl"), [
    ("a-b-3:1.2-4.el8.noarch", "pkg:rpm/rocky/a-b@1.2-4.el8?arch=noarch&epoch=3"),
    ("a-b-0:1.2-4.el8.noarch", "pkg:rpm/rocky/a-b@1.2-4.el8?arch=noarch"),
    ("a-b-1.2-4.el8.noarch", "pkg:rpm/rocky/a-b@1.2-4.el8?arch=noarch"),
])
def test_package_has_the_address_that_advisories_use(nevra, purl):
    assert sbom.toolchain([nevra])[0]["purl"] == purl


def test_what_it_names(bill):
    outputs = {component["name"]: component for component in bill["components"]}
    assert set(outputs) == {"base", "hello", "dkms", "tar"}
    assert outputs["tar"]["purl"] == "pkg:rpm/rocky/tar@1.30-11.el8_10?arch=x86_64&epoch=2"
    package, file = outputs["hello"]["components"]
    assert package["purl"] == "pkg:pypi/some-package@4.2"
    assert package["licenses"] == [{"license": {"name": "Apache-2.0"}}]
    assert file["name"] == "a.tar"
    assert file["hashes"][0]["alg"] == "SHA-256"
    rpm, tool = outputs["base"]["components"]
    assert rpm["purl"] == "pkg:rpm/rocky/gcc-toolset-10-gcc@10.3.1-1.2.el8_5?arch=x86_64"
    assert tool["name"] == "g++ (GCC) 10"
    depends = {dependency["ref"]: dependency["dependsOn"] for dependency in bill["dependencies"]}
    assert depends[outputs["hello"]["bom-ref"]] == [outputs["base"]["bom-ref"]]
    said = {entry["name"]: entry["value"] for entry in bill["metadata"]["component"]["properties"]}
    assert said == {"kepler:kernel": "4.18", "kepler:driver": "470", "kepler:lock_hash": "l"}
