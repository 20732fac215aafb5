"""The role image: the configuration of the image for each profile, what it copies from the host, what it refuses."""

import hashlib
from pathlib import Path

import pytest
from ansible_collections.kepler.vllm.plugins.module_utils.store import address, build
from ansible_collections.kepler.vllm.plugins.module_utils.store.errors import StoreError
from ansible_collections.kepler.vllm.plugins.plugin_utils.profiles import directory, lock_of, profiles
from recipes import needs_namespaces, recipe
from rendered import evaluate, render

OUTPUTS = {
    name: f"/opt/kepler/store/{name}"
    for name in ("serving", "serving_port", "image_libraries", "image_interpreter")
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
    ({"image_engine": "stock", "__common_engines": ["stock"]}, "image_base: found ''; expected a base with gcc and"),
    ({"image_load": "docker"}, "image_archive: found ''; expected a file on the host that docker loads"),
])  # fmt: skip
def test_settings_that_make_no_image_are_refused(play, variables, message):
    status, printed = play(
        [{"name": "Role", "ansible.builtin.include_role": {"name": "kepler.vllm.image", "tasks_from": "check"}}],
        variables=variables, gather_facts=False)
    assert status != 0
    # Ansible doubles the quotes.
    assert message in " ".join(printed.split()).replace("''", "'"), printed
