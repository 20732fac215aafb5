"""The role image: the configuration of the image for each profile, what it copies from the host, what it refuses."""

import hashlib
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from ansible_collections.kepler.vllm.plugins.module_utils.store import address, build
from ansible_collections.kepler.vllm.plugins.module_utils.store.errors import StoreError
from ansible_collections.kepler.vllm.plugins.plugin_utils.profiles import directory, lock_of, profiles
from recipes import needs_namespaces, recipe
from rendered import ROOT, evaluate, render

ROLE = ROOT / "roles" / "image"
OUTPUTS = {
    name: f"/opt/kepler/store/{name}"
    for name in ("serving", "serving_port", "image_libraries", "image_interpreter", "image_compiler")
}
EACH = pytest.mark.parametrize("name", sorted(profiles(directory())))


def config(name, **variables):
    return evaluate(
        "image", "{{ __image_config }}", profile=profiles(directory())[name], kepler_lock=lock_of(directory() / name),
        store_outputs=OUTPUTS, **{"python_provider": "source", "image_user": "10001:10001", **variables})


@EACH
def test_image_starts_the_servers_of_its_profile(name):
    profile, found = profiles(directory())[name], config(name)
    assert found["Entrypoint"][:3] == ["/opt/kepler/store/serving/bin/python", "-m", "vllm_serving.container"]
    dtype = profile["serve"]["dtypes"][0]
    assert found["Entrypoint"][4:10] == ["--host", "0.0.0.0", "--port", "8000", "--dtype", dtype]
    stock = profile["serve"]["engine"] == "stock"
    assert ("--disable-custom-all-reduce" in found["Entrypoint"]) == stock
    assert ('--structured-outputs-config {"backend": "guidance"}' in " ".join(found["Entrypoint"])) == stock
    assert found["Healthcheck"]["Test"][-1] == "--health"
    assert found["User"] == "10001:10001"
    environment = dict(one.split("=", 1) for one in found["Env"])
    assert environment["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert environment["LD_LIBRARY_PATH"] == "/opt/kepler/store/image_libraries/lib"
    assert profile["engines"][profile["serve"]["engine"]]["environment"].items() <= environment.items()
    assert found["Labels"]["vllm-kepler.profile"] == name


def test_image_of_another_engine_has_its_environment():
    instances = [{"name": "a", "engine": "stock"}, {"name": "b", "engine": "port"}]
    given = {"vllm_service_instances": instances, "vllm_service_instance_defaults": {"model": "/m"}}
    stock, port = config("volta", **given), config("volta", image_engine="port", **given)
    assert [found["Entrypoint"][0] for found in (stock, port)] == [
        "/opt/kepler/store/serving/bin/python", "/opt/kepler/store/serving_port/bin/python"]
    assert [found["Labels"]["vllm-kepler.engine"] for found in (stock, port)] == ["stock", "port"]
    assert "VLLM_SERVING_CAPABILITY=7.0" in stock["Env"]
    assert "VLLM_USE_V1=0" in port["Env"]
    assert not [text for text in port["Env"] if text.startswith("VLLM_SERVING_CAPABILITY")]
    assert "--disable-custom-all-reduce" not in port["Entrypoint"]
    names = [evaluate("image", "{{ image_name }}", profile=profiles(directory())["volta"],
                      kepler_lock=lock_of(directory() / "volta"), image_engine=engine, **given)
             for engine in ("stock", "port")]
    assert names == ["vllm-kepler:volta", "vllm-kepler:volta-port"]


def test_image_of_the_released_engine_has_a_compiler():
    for name, engine, there in (("volta", "stock", True), ("volta", "port", False), ("k80", "port", False)):
        given = {"image_engine": engine, "profile": profiles(directory())[name], "store_outputs": OUTPUTS}
        programs = evaluate("image", "{{ __image_programs }}", **given)
        path = evaluate("image", "{{ __image_environment.PATH }}", **given)
        assert (OUTPUTS["image_compiler"] in programs) == there
        assert path.startswith(f"{programs[0]}/bin:" + f"{OUTPUTS['image_compiler']}/bin:/usr" * there)


def test_image_has_a_home_that_any_user_can_write():
    assert evaluate("image", "{{ __image_directories }}") == {
        "/models": "0755", "/run/vllm": "1777", "/var/lib/vllm": "1777"}


def test_headers_of_the_interpreter_are_a_part_if_asked_for(tmp_path):
    script, python = ROLE / "files" / "interpreter-parts.py", sys.executable
    plain, with_headers = (
        subprocess.run([python, script, *asked], check=True, capture_output=True, text=True).stdout.splitlines()
        for asked in ([], ["headers"])
    )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    assert [part for part in with_headers if part not in plain] == (
        [str(header.parent.relative_to(sys.base_prefix))] if header.exists() else [])


def test_interpreter_of_the_host_is_linked_at_its_own_place():
    interpreter = {"stdout_lines": ["/usr", "bin/python3.12", "lib64/python3.12"]}
    given = {"store_outputs": OUTPUTS, "__image_interpreter": interpreter}
    copy = OUTPUTS["image_interpreter"]
    assert evaluate("image", "{{ __image_links }}", python_provider="distribution", **given) == {
        "/usr/bin/python3.12": f"{copy}/bin/python3.12", "/usr/lib64/python3.12": f"{copy}/lib64/python3.12"}
    assert evaluate("image", "{{ __image_links }}", python_provider="source", **given) == {}


def test_generation_follows_from_the_outputs():
    first, second = config("k80"), config("k80", python_provider="prebuilt")
    assert first["Labels"]["vllm-kepler.generation"] == first["Entrypoint"][3]
    assert first["Entrypoint"][3] != second["Entrypoint"][3]
    assert config("k80") == first


@EACH
def test_lock_names_the_base(name):
    base = lock_of(directory() / name)["containers"]["images"]["base"]
    release = str(profiles(directory())[name]["platform"]["major"])
    assert base["name"].rpartition(":")[2].startswith(release)


def lines(*paths):
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path} {path.name}.1\n" for path in paths)


@needs_namespaces
def test_libraries_are_copied_by_their_digests(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "LOGS", str(tmp_path / "log"))
    root = str(tmp_path / "kepler")
    found = []
    for name in ("liba.so", "libb.so"):
        (tmp_path / name).write_text(name)
        found.append(tmp_path / name)

    def made(text):
        return recipe(builder=render("image", "build-libraries.sh"), environment={"LIBRARIES": text})

    try:
        build.realise(root, made(lines(*found)), [], [])
        out = address.output_path(root, made(lines(*found)))
        for path in found:
            assert Path(out, "lib", f"{path.name}.1").read_text() == path.name
        before = lines(*found)
        found[0].write_text("another")
        assert address.output_path(root, made(lines(*found))) != out
        with pytest.raises(StoreError, match=r"liba.so: FAILED"):
            build.realise(root, {**made(before), "version": "2"}, [], [])
    finally:
        build.remove_tree(root)


@pytest.mark.parametrize(("variables", "message"), [
    ({"image_base_digest": "sha256:12"}, "image_base_digest: found 'sha256:12'; expected the digest of the base"),
    ({"image_name": "VLLM"}, "image_name: found 'VLLM'; expected REPOSITORY:TAG"),
    ({"image_engine": "stock"}, "image_engine: found 'stock'; expected port, of which the host has an environment"),
    ({"image_engine": "stock", "__common_engines": ["stock"]}, "compiler: found '0 parts in /opt/rh/"),
    ({"image_load": "docker"}, "image_archive: found ''; expected a file on the host that docker loads"),
])  # fmt: skip
def test_settings_that_make_no_image_are_refused(play, variables, message):
    status, printed = play(
        [{"name": "Role", "ansible.builtin.include_role": {"name": "kepler.vllm.image", "tasks_from": "check"}}],
        variables=variables, gather_facts=False)
    assert status != 0
    # Ansible doubles the quotes.
    assert message in " ".join(printed.split()).replace("''", "'"), printed


C_FILE = """
#include <Python.h>
#include <dlfcn.h>
int main(void) { return dlopen("libc.so.6", RTLD_LAZY) ? 0 : 1; }
"""
CXX_FILE = "#include <vector>\nint main() { return std::vector<int>(3).size() - 3; }\n"


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """The output with the copy of this machine's compiler."""
    if not Path("/usr/bin/gcc").exists():
        pytest.skip("needs gcc")
    root = str(tmp_path_factory.mktemp("kepler"))
    digest, *parts = subprocess.run(
        [sys.executable, ROLE / "files" / "compiler-parts.py", "/usr/bin"], check=True, capture_output=True, text=True
    ).stdout.splitlines()

    def made(**changes):
        environment = {"DIGEST": digest, "PARTS": "".join(f"{line}\n" for line in parts), **changes}
        made = recipe(builder=render("image", "build-compiler.sh"), environment=environment)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(build, "LOGS", root + "/log")
            build.realise(root, made, [], [])
        return address.output_path(root, made)

    yield made
    build.remove_tree(root)


@needs_namespaces
def test_copy_of_the_compiler_needs_nothing_of_the_base(compiler, tmp_path):
    out = compiler()
    (tmp_path / "a.c").write_text(C_FILE)
    (tmp_path / "a.cpp").write_text(CXX_FILE)
    python = sysconfig.get_path("include")
    for program, source in (("gcc", "a.c"), ("g++", "a.cpp")):
        if not Path(out, "bin", program).exists():
            continue
        done = subprocess.run(
            [Path(out, "bin", program), "-v", "-H", source, f"-I{python}", "-Wl,--trace", "-o", "a"], cwd=tmp_path,
            env={"PATH": "/nowhere"}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert subprocess.run([tmp_path / "a"]).returncode == 0
        used = re.findall(r"^[.]+ (/\S+)|^ (/\S+/(?:cc1|cc1plus|as|collect2)) ", done.stderr, re.MULTILINE)
        used = {os.path.normpath(path) for pair in used for path in pair if path}
        used |= {os.path.normpath(path) for path in re.findall(r"^\(?(/\S+?)\)?(?:\(|$)", done.stdout, re.MULTILINE)}
        outside = {path for path in used if not path.startswith((out, python, "/tmp"))}
        assert len(used) > 20
        assert not outside


@needs_namespaces
def test_compiler_that_has_changed_makes_no_output(compiler):
    with pytest.raises(StoreError, match="the compiler of the host has changed"):
        compiler(DIGEST="0" * 64, PARTS="usr/bin/gcc /usr/bin/gcc\nusr/lib64/ld.so /lib64/ld-linux-x86-64.so.2\n")


def test_host_without_a_compiler_has_no_parts(tmp_path):
    done = subprocess.run([sys.executable, ROLE / "files" / "compiler-parts.py", tmp_path], capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"")
