"""The profile of sm_70: wheels that its hosts can load, a driver that drives them, recipes that build nothing."""

import re

import pytest
import yaml
from ansible_collections.kepler.vllm.plugins.filter.kepler_boards import board_findings, gpu_of, slow_findings
from ansible_collections.kepler.vllm.plugins.filter.kepler_driver import driver_findings
from ansible_collections.kepler.vllm.plugins.filter.kepler_host import glibc_findings
from ansible_collections.kepler.vllm.plugins.filter.kepler_profiles import provider_findings
from ansible_collections.kepler.vllm.plugins.filter.kepler_rpms import host_rpms, locked_driver
from ansible_collections.kepler.vllm.plugins.filter.lock_sources import bundle_sources, engine_wheels
from ansible_collections.kepler.vllm.plugins.module_utils import rpms
from ansible_collections.kepler.vllm.plugins.plugin_utils import profiles
from rendered import ROOT, evaluate, render

ROOTS = ROOT / "profiles"
PROFILE = profiles.profiles(ROOTS)["volta"]
LOCK = profiles.lock_of(ROOTS / "volta")
VARIABLES = {"profile": PROFILE, "kepler_lock": LOCK}
GPU = PROFILE["gpu"]


def version(project):
    (found,) = [package["version"] for package in LOCK["python"]["serving"] if package["project"] == project]
    return found


def test_wheels_are_those_that_volta_needs():
    assert (version("torch"), version("triton"), version("nvidia-cudnn-cu12")) == ("2.9.0", "3.5.0", "9.10.2.21")
    projects = {package["project"] for package in LOCK["python"]["serving"]}
    assert not projects & {"flashinfer-python", "ray"}


@pytest.mark.parametrize("environment", ["serving", "serving_port"])
def test_ray_finds_its_requirements_in_either_environment(environment):
    """Those of ray and msgpack; jsonschema's and requests' are in as well."""
    projects = {package["project"] for package in LOCK["python"][environment]}
    assert {"click", "filelock", "jsonschema", "packaging", "protobuf", "pyyaml", "requests"} <= projects
    assert {package["project"] for package in LOCK["python"]["ray"]} == {"ray", "msgpack"}


def test_every_wheel_runs_on_the_glibc_of_the_release():
    """A wheel's tag names the oldest glibc that it loads with: 2.34 on Enterprise Linux 9."""
    files = engine_wheels(LOCK, ["", "_port"])
    for file in files:
        levels = [int(level) for level in re.findall(r"manylinux_2_([0-9]+)", file)]
        assert not levels or min(levels) <= 34, file
        assert re.search(r"-(cp312-cp312|cp[0-9]+-abi3|(py2[.])?py3|py[0-9]+|cp312)-", file), file


def test_driver_is_the_last_branch_and_proprietary():
    assert locked_driver(LOCK)["stream"] == "580-dkms"
    assert {entry["version"].split(".")[0] for entry in LOCK["rpms"] if entry.get("unit") == "driver"} == {"580"}
    assert not [entry["name"] for entry in LOCK["rpms"] if "open" in entry["name"]]


@pytest.mark.parametrize(("kernel", "accepted"), [
    ("5.14.0-427.13.1.el9_4", True), ("5.14.0-611.el9_7", True), ("5.14.0-611.5.1.el9_7", True),
    ("5.14.0-.el9_4", False), ("5.14.0-611.el9", False), ("4.18.0-553.el8_10", False), ("5.14.0-611.el9_7+rt", False),
])  # fmt: skip
def test_kernels_of_every_minor_release_are_in_range(kernel, accepted):
    assert rpms.in_range(LOCK["kernels"]["range"], kernel) == accepted


def facts(*packages, **others):
    return {"streams": {}, "packages": packages, "runfile": False, "driver_package": None, **others}


@pytest.mark.parametrize(("host", "named"), [
    (facts(streams={"nvidia-driver": "open-dkms"}), "nvidia-driver:open-dkms"),
    (facts(streams={"nvidia-driver": "latest-dkms"}), "nvidia-driver:latest-dkms"),
    (facts("kmod-nvidia-open-dkms"), "kmod-nvidia-open-dkms"),
    (facts(driver_package="590.48.01"), "driver 590.48.01 installed"),
])  # fmt: skip
def test_a_driver_that_does_not_drive_volta_is_refused(host, named):
    (found,) = driver_findings(host, locked_driver(LOCK), container=True)
    assert found["severity"] == "error"
    assert named in found["found"]


def test_hosts_get_no_toolkit_but_what_triton_calls():
    names = {entry["name"] for entry in host_rpms(LOCK, "module_stream", True, toolkit=False)}
    assert {"gcc", "python3.12", "python3.12-devel", "python3.12-pip"} <= names
    assert not [name for name in names if name.startswith(("cuda-", "libcu"))]


STOCK, PORT = [{"engine": "stock"}], [{"engine": "port"}]
NONE: list = []


@pytest.mark.parametrize(("own", "builder", "engines", "toolkit"), [
    (NONE, "", ["stock"], False), (STOCK, "", ["stock"], False), (PORT, "", ["port"], True),
    (PORT + STOCK, "", ["stock", "port"], True),
    # Another host builds; this one does, for all, a server of its own or none.
    (PORT, "b", ["port"], False), (STOCK, "v", ["stock", "port"], True), (NONE, "v", ["port"], True),
])  # fmt: skip
def test_engines_and_toolkit_are_those_of_the_instances(own, builder, engines, toolkit):
    """Environments follow from a host's own instances; CUDA is for the host that compiles kernels."""
    known = {
        **VARIABLES, "inventory_hostname": "v", "store_builder": builder, "vllm_service_instances": own,
        "groups": {"v100-hosts": ["v", "w"]},
        "hostvars": {"v": {"vllm_service_instances": own}, "w": {"vllm_service_instances": PORT}},
    }
    found = evaluate("cuda_toolkit", "{{ [__common_engines, __common_toolkit | bool, vllm_kernels | bool] }}", **known)
    assert found == [engines, toolkit, "port" in engines]


def test_wheels_of_both_engines_make_one_output_of_pytorch():
    def wheels(name):
        return {
            package["file"]: package["sha256"] for package in LOCK["python"][name]
            if package["project"] == "torch" or package["project"].startswith("nvidia-")
        }

    assert wheels("serving") == wheels("serving_port")
    assert "triton" not in {package["project"] for package in LOCK["python"]["serving_port"]}


def test_store_takes_the_wheels_as_they_are():
    task = yaml.safe_load((ROOT / "roles/vllm/tasks/upstream_wheel.yml").read_text())[0]["kepler.vllm.store_output"]
    (source,) = evaluate("vllm", task["sources"], **VARIABLES)
    assert source["file"] == LOCK["sources"]["vllm"]["file"]
    assert "pip --quiet install" in render("vllm", "build-vllm-wheel.sh", **VARIABLES)
    chosen = "{{ [vllm_kernels | bool, __vllm_upstream_wheel, __vllm_port_wanted, python_provider, pytorch_provider] }}"
    assert evaluate("vllm", chosen, **VARIABLES) == [False, True, False, "distribution", "wheel"]
    serving = render("vllm", "build-serving.sh", **VARIABLES)
    assert 'in "$vllm_dependencies" "$pytorch" "$vllm" "$vllm_serving"; do' in serving
    assert "import torch, vllm, vllm_serving.supervisor" in serving


@pytest.mark.parametrize(("engine", "engines", "also"), [
    ("port", ["port"], ["serving"]), ("port", ["stock", "port"], []), ("stock", ["stock", "port"], ["serving"]),
])
def test_first_environment_is_that_of_any_program(engine, engines, also):
    """Whatever is built after it, Ray or an image, is beside it."""
    task = yaml.safe_load((ROOT / "roles/vllm/tasks/install.yml").read_text())[1]["kepler.vllm.store_output"]
    assert evaluate("vllm", task["also"], **VARIABLES, __vllm_engine=engine, __common_engines=engines) == also


def test_port_is_built_beside_the_released_engine():
    """Outputs of its own for all that differs, of the same recipes as elsewhere."""
    known = {**VARIABLES, "__vllm_engine": "port", "store_outputs": {
        name: f"/store/{name}" for name in (
            "python312", "pytorch", "vllm", "vllm_port", "vllm_dependencies", "vllm_dependencies_port", "vllm_kepler",
            "vllm_serving")}}

    def output(file, number):
        task = yaml.safe_load((ROOT / "roles/vllm/tasks" / f"{file}.yml").read_text())[number]
        called = task["kepler.vllm.store_output"]
        arguments = {key: called[key] for key in ("name", "version", "sources", "inputs") if key in called}
        return evaluate("vllm", arguments, **known, **task.get("vars", {}))

    chosen = "{{ [__vllm_upstream_wheel, __vllm_port_wanted, __vllm_vendored | basename] }}"
    file = LOCK["sources"]["vllm_port"]["file"]
    assert evaluate("vllm", chosen, **known) == [False, True, file]
    built = output("upstream_sdist", 0)
    assert (built["name"], built["version"]) == ("vllm_port", LOCK["sources"]["vllm_port"]["version"])
    assert file in [source["file"] for source in built["sources"]]
    dependencies = output("install", 0)
    assert dependencies["name"] == "vllm_dependencies_port"
    (transformers,) = [source["file"] for source in dependencies["sources"] if source["name"] == "transformers"]
    assert transformers in [package["file"] for package in LOCK["python"]["serving_port"]]
    serving = output("install", 1)
    assert serving["name"] == "serving_port"
    assert (serving["inputs"]["vllm"], serving["inputs"]["pytorch"]) == ("/store/vllm_port", "/store/pytorch")
    assert serving["inputs"]["vllm_kepler"] == "/store/vllm_kepler"
    script = render("vllm", "build-serving.sh", **known)
    assert "VLLM_USE_V1=0" in script
    assert '"$vllm_kepler" "$vllm_serving"; do' in script


def test_bundle_holds_the_files_of_both_engines():
    sources = bundle_sources(LOCK, {"pytorch_provider": "wheel", "python_provider": "distribution"})
    names = [source["file"] for source in sources]
    assert len(set(names)) == len(names)
    assert {LOCK["sources"][name]["file"] for name in ("vllm", "vllm_port")} <= set(names)
    assert set(engine_wheels(LOCK, ["", "_port"])) <= set(names)


@pytest.mark.parametrize(("instances", "wanted"), [(STOCK, False), (PORT, True), (NONE, False)])
def test_bundle_has_cuda_where_a_host_compiles(instances, wanted):
    """Its packages are unverified: they must not fail the bundle of hosts that never install them."""
    (play,) = yaml.safe_load((ROOT / "playbooks/bundle.yml").read_text())
    toolkit = evaluate("common", play["vars"]["__bundle_toolkit"], groups={"v100-hosts": ["v"]},
                       hostvars={"v": {"vllm_service_instances": instances}}, **VARIABLES)
    assert toolkit is wanted
    packages = evaluate("common", "{{ kepler_lock | kepler.vllm.locked_rpms(toolkit=wanted) }}", wanted=toolkit,
                        **VARIABLES)
    assert any(package.startswith("cuda-nvcc") for package in packages) is wanted
    assert any(package.startswith("nvidia-driver") for package in packages)


@pytest.mark.parametrize(("chosen", "variable"), [
    ({"python": "distribution", "pytorch": "source"}, "pytorch_provider"),
    ({"python": "source", "pytorch": "wheel"}, "python_provider"),
])  # fmt: skip
def test_providers_of_another_profile_are_refused(chosen, variable):
    (found,) = provider_findings(PROFILE, **chosen)
    assert found["variable"] == variable
    assert "which the profile volta has" in found["expected"]


def on_bus(*devices):
    return {"pci": [
        {"address": f"0000:{number:02}:00.0", "device": device, "slot": None, "driver": None, "bridges": []}
        for number, device in enumerate(devices)
    ]}


def test_memory_is_that_of_the_least_board():
    assert gpu_of(on_bus("0x1db5", "0x1db6"), GPU)["memory_mib"] == 32501
    assert gpu_of(on_bus("0x1db5", "0x1db4"), GPU)["memory_mib"] == 16151
    assert gpu_of(on_bus("0x1db5", "0x1d81"), GPU)["memory_mib"] == 12066
    assert gpu_of(on_bus(), GPU)["memory_mib"] == 16151


@pytest.mark.parametrize(("device", "profile", "group", "said"), [
    ("0x102d", "volta", "v100-hosts", "no Tesla V100 on the PCI bus"),
    ("0x1db4", "k80", "k80-hosts", "no Tesla K80 on the PCI bus"),
])  # fmt: skip
def test_a_board_in_the_group_of_another_profile_is_refused(device, profile, group, said):
    host = {**on_bus(device), "gpu": profiles.profiles(ROOTS)[profile]["gpu"], "group": group}
    found = board_findings(host)[0]
    assert (found["severity"], said in found["found"]) == ("error", True)
    other = {"volta": "A Tesla K80 belongs into k80-hosts.", "k80": "A Tesla V100-PCIE-16GB belongs into v100-hosts."}
    assert other[profile] in found["next_step"]


@pytest.mark.parametrize(("glibc", "refused"), [
    ("2.28", True), ("2.30", True), ("2.31", False), ("2.34", False), ("", False),
])  # fmt: skip
def test_a_glibc_older_than_the_wheels_is_refused(glibc, refused):
    wheels = evaluate("preflight", "{{ __preflight_wheels }}", **VARIABLES)
    found = glibc_findings({"glibc": glibc, "platform": PROFILE["platform"]}, wheels)
    assert [(item["severity"], item["found"]) for item in found] == ([("error", f"glibc {glibc}")] if refused else [])
    if refused:
        assert f"2.31 or newer, which {LOCK['sources']['vllm']['file']} is linked with" in found[0]["expected"]


@pytest.mark.parametrize(("device", "engine", "warned"), [
    ("0x1df4", "stock", True), ("0x1d84", "stock", True), ("0x1df4", "port", False), ("0x1db4", "stock", False),
])  # fmt: skip
def test_a_mining_card_with_the_released_engine_gets_a_warning(device, engine, warned):
    found = slow_findings({**on_bus("0x1db5", device), "gpu": GPU}, [{"engine": engine}])
    assert [item["severity"] for item in found] == (["warning"] if warned else [])
    for text in ("CMP 100-210 at 0000:01:00.0", "engine: port", "5 to 6 TFLOP/s", "250 MB/s") if warned else ():
        assert text in found[0]["found"] + found[0]["expected"]


# Those of one host; that of two is in preflight/test_several_hosts.py.
EXAMPLES = sorted(
    path for path in (ROOT / "inventory" / "examples" / "volta").glob("*.yml") if path.stem != "two-hosts"
)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_sound_and_renders(path):
    groups = yaml.safe_load(path.read_text())
    hosts = groups["v100-hosts"]["vars"]
    settings = {**VARIABLES, "vllm_service_instance_defaults": {}, **hosts}
    instances = evaluate("vllm_service", "{{ __common_instances }}", **settings)
    faults = "{{ __common_instances | kepler.vllm.inventory_findings(profile.serve) }}"
    assert evaluate("preflight", faults, **settings) == []
    for instance in instances:
        assert instance["tensor_parallel_size"] in PROFILE["serve"]["sizes"]
        written = yaml.safe_load(render("vllm_service", "instance.yaml.j2", item=instance, **settings))
        assert written["tensor-parallel-size"] == len(instance["gpus"])
        assert written["dtype"] == "half"
        environment = render("vllm_service", "instance.env.j2", item=instance, vllm_service_device="kepler", **settings)
        assert {"NCCL_CUMEM_ENABLE=0", "NCCL_PROTO=Simple"} <= set(environment.splitlines())
        assert f"CUDA_VISIBLE_DEVICES={','.join(map(str, instance['gpus']))}" in environment
        port = instance["engine"] == "port"
        assert ("VLLM_USE_V1=0" in environment.splitlines()) == port
        assert ("disable-custom-all-reduce" in written) != port
        dropin = render("vllm_service", "instance.conf.j2", item=instance, **settings,
                        __vllm_service_current={"stat": {"lnk_target": "generations/7"}})
        assert ('"$$generation/serving_port")/bin/python"' in dropin) == port


def test_a_stand_in_binds_no_threads_and_compiles_nothing():
    """With bound threads vLLM takes one rank for each NUMA node."""
    instance = {"name": "a", "model": "/m", "engine": "stock", "gpus": [0, 1], "cuda_graphs": False, "parsers": True,
                "adapters": {}}
    for device, bound in (("cpu", True), ("kepler", False)):
        text = render("vllm_service", "instance.env.j2", item=instance, vllm_service_device=device, **VARIABLES)
        there = {"VLLM_CPU_OMP_THREADS_BIND=nobind", "TORCHDYNAMO_DISABLE=1"} & set(text.splitlines())
        assert len(there) == (2 if bound else 0)


def test_examples_cover_the_layouts_of_their_users():
    layouts = {
        path.stem: sorted(len(instance["gpus"]) for instance in
                          yaml.safe_load(path.read_text())["v100-hosts"]["vars"]["vllm_service_instances"])
        for path in EXAMPLES
    }
    assert layouts == {"one": [1], "sessions": [1, 1], "port": [1, 1], "tp2": [2], "tp4": [4]}
    balanced = yaml.safe_load((ROOT / "inventory/examples/volta/sessions.yml").read_text())
    assert "vllm_balancer" in balanced
    assert balanced["v100-hosts"]["vars"]["bench_lengths"] == [[512, 128, 4], [1024, 1]]
