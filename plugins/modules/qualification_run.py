#!/usr/bin/python
"""Qualify a host for its servers: one GPU, the GPUs of a board, then more."""

DOCUMENTATION = r"""
module: qualification_run
short_description: Qualify a host for its servers, stage by stage
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Loads one die, the dies of one board, then more, reads temperatures, power, clocks, ECC and the kernel log each
    second, and stops at the first bad sign. Every reading is on the disk before the next step, so that a machine that
    halts leaves its last one.
  - Writes the qualification record. Does nothing if the record is valid for the host's kernel, driver and boards.
  - Sets no clock, no power limit and no other property of a board.
  - The action plugin of this name runs the work detached and shows its progress. The next run picks up work whose
    controller went away.
options:
  directory:
    description: Directory of the record and the traces. It must exist, but in check mode.
    type: path
    default: /var/lib/kepler/qualification
  root:
    description: Root of the store; the active generation's C(serving) is what the load runs on.
    type: path
    default: /opt/kepler
  load:
    description: Program of one rank.
    type: path
    required: true
  graphs:
    description: >-
      Program that compares the answers of an engine with CUDA graphs and without, on the GPUs of the largest stage;
      left out, nobody tries.
    type: path
  device:
    description: >-
      V(kepler) loads the GPUs of the profile; V(verify) any NVIDIA GPU; with V(cpu) the CPU computes while nvidia-smi
      is read.
    type: str
    choices: [kepler, verify, cpu]
    default: kepler
  mode:
    description: V(skip) writes a record that says so, and loads nothing.
    type: str
    choices: [run, skip]
    default: run
  seconds:
    description: Seconds of load in each stage.
    type: int
    default: 90
  pair_timeout:
    description: Longest time in seconds for one pair of GPUs.
    type: int
    default: 120
  profile:
    description: The host's hardware profile, of which C(gpu), C(limits) and C(serve.sizes) are read.
    type: dict
    required: true
  temperature:
    description: Degrees Celsius at which a GPU counts as hot, in place of the profile's.
    type: int
  retry:
    description: Run again although the last result was a failure or a halt.
    type: bool
    default: false
  nvidia_smi:
    description: Program that reads the GPUs.
    type: str
    default: nvidia-smi
  kmsg:
    description: The kernel's log.
    type: path
    default: /dev/kmsg
  fresh:
    description: Whether this is the first call of a task. The action plugin sets it.
    type: bool
    default: true
  detach:
    description: Start the work, or look how far it is, and return at once. The action plugin uses it.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    description: Says whether the host would be qualified and why; loads nothing.
"""

EXAMPLES = r"""
- name: Qualify
  kepler.vllm.qualification_run:
    load: /usr/local/libexec/kepler-qualification/load.py
    profile: "{{ profile }}"
    seconds: 120
"""

RETURN = r"""
record:
  description:
    - >-
      What the host keeps: C(result) (V(passed), V(failed), V(halted), V(skipped)), C(passed_size), C(size) and C(dies)
      (what servers may use), C(p2p), C(graphs), C(findings), C(stages), C(boards), C(kernel), C(driver), C(generation),
      C(time),
      C(trace).
  type: dict
  returned: where the host has one that holds
reasons:
  description: Why the host is to be qualified.
  type: list
  elements: str
  returned: always
stages:
  description: The stages of this host, each with C(size) and C(dies).
  type: list
  elements: dict
  returned: where the GPUs could be read
fault:
  description: >-
    Why the host cannot be qualified: GPUs that cannot be read, or no serving environment; empty if it can. In check
    mode alone, else the task fails with it.
  type: str
  returned: if the GPUs were looked at
running:
  description: With O(detach), whether the work goes on.
  type: bool
  returned: always
started:
  description: With O(detach), whether this call started the work.
  type: bool
  returned: always
progress:
  description: With O(detach), what the work is at.
  type: str
  returned: always
"""

import os
import platform
import traceback

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kepler.vllm.plugins.module_utils import jobs
from ansible_collections.kepler.vllm.plugins.module_utils.findings import finding
from ansible_collections.kepler.vllm.plugins.module_utils.gpu import qualification, qualification_run, smi
from ansible_collections.kepler.vllm.plugins.module_utils.store.disk import Lock, is_locked, write_atomically


class Files(object):
    """The files of a host's qualification."""

    def __init__(self, directory):
        self.directory = directory
        self.record = os.path.join(directory, "stamp.json")
        self.fault = os.path.join(directory, "fault.json")
        self.lock = os.path.join(directory, "lock")

    def records(self):
        """(name of the newest trace, its records); (None, []) if there is none."""
        names = qualification_run.trace_names(self.directory) if os.path.isdir(self.directory) else []
        if not names:
            return None, []
        return names[-1], qualification.read_trace(qualification_run.read_text(os.path.join(self.directory, names[-1])))


def generation(root):
    """Number of the active generation, or None."""
    try:
        return os.path.basename(os.readlink(os.path.join(root, "current")))
    except OSError:
        return None


def read_host(params):
    """(facts that the record must fit, the answer of nvidia-smi if it shows no GPU)."""
    fine, text = smi.query(params["nvidia_smi"], smi.IDENTITY)
    products = None if params["device"] == "verify" else params["profile"]["gpu"]["products"]
    gpus = smi.gpus_of(text, products) if fine else []
    driver = gpus[0].pop("driver") if gpus else None
    for gpu in gpus[1:]:
        gpu.pop("driver")
    return {
        "kernel": platform.release(), "driver": driver, "device": params["device"], "dies": gpus,
        "generation": generation(params["root"]),
    }, None if gpus else (text or "no GPU")


def record_of_interrupted_run(files, host):
    """The record of a run that the machine did not survive; None without one, or if it says nothing of `host`."""
    name, records = files.records()
    summary = qualification.summarize(records)
    if summary["ended"] or not summary["begin"]["stages"]:
        return None
    if summary["begin"]["boot"] == qualification_run.read_text(qualification_run.BOOT).strip():
        return None  # the machine kept running: only the process was killed
    passed, fault = qualification.interrupted(summary)
    p2p = summary["step"]["p2p"] if summary["step"] else None
    record = qualification.make_record(summary["begin"], "halted", passed, [fault], p2p, name)
    return None if qualification.stale_reasons(record, host) else record


def skip_load(files, params, host, stages):
    """The record that needs no load: of a host to be skipped, or of one that halted; else None."""
    if params["mode"] == "run":
        return None if params["retry"] else record_of_interrupted_run(files, host)
    begin = dict(host, time=qualification_run.now(), seconds=params["seconds"], stages=stages)
    return qualification.make_record(begin, "skipped", 0, [finding(
        "warning", "qualification", "skip", "a host that was qualified",
        "Remove `qualification: skip`, then run again: nobody knows whether this host stands its load.",
    )], None, None)


def options_of(params):
    """Arguments of a run. Raises ValueError if the serving environment is missing."""
    serving = os.path.realpath(os.path.join(params["root"], "current", "serving"))
    python = os.path.join(serving, "bin", "python")
    if not os.access(python, os.X_OK):
        raise ValueError(
            "%s: found no program there; expected the Python of the active generation's output serving. Run "
            "playbooks/build.yml first." % python
        )
    return {
        "directory": params["directory"], "python": [python], "load": params["load"], "device": params["device"],
        "graphs": params["graphs"], "seconds": params["seconds"], "pair_timeout": params["pair_timeout"],
        "nvidia_smi": params["nvidia_smi"],
        "kmsg": params["kmsg"], "profile": params["profile"],
        "stall": qualification_run.STALL, "interval": qualification_run.INTERVAL,
    }


def environment_fault(params):
    """Why no rank can be started on this host; empty if one can, or none is to be."""
    try:
        if params["mode"] == "run":
            options_of(params)
    except ValueError as fault:
        return str(fault)
    return ""


def work(files, lock, host, options):
    """Qualify and leave the record; a fault of this program leaves its message. Returns the record."""
    try:
        record = qualification_run.Qualification(host, options).run()
        write_atomically(files.record, record)
        return record
    except Exception:
        text = "unexpected fault in the qualification; please report it:\n%s" % traceback.format_exc()
        jobs.write_result([files.fault], msg=text)
        raise
    finally:
        lock.release()


def read_record(params, files, host):
    """(record of the host, reasons why it is not valid)."""
    record = jobs.read(files.record)
    reasons = qualification.stale_reasons(record, host, params["mode"] == "skip")
    if not reasons and params["retry"] and params["fresh"] and record["result"] in ("failed", "halted"):
        reasons = ["qualification_retry: the last result was: %s" % record["result"]]
    return record, reasons


def answer_while_busy(module, files, result):
    """Message while another qualification runs on this host."""
    result["reasons"] = ["a qualification is running"]
    if module.check_mode:
        module.exit_json(changed=True, **result)
    if module.params["detach"]:
        records = files.records()[1]
        module.exit_json(changed=True, **dict(result, running=True, progress=qualification.progress(records)))
    module.fail_json(msg="%s: another qualification is running on this host; wait for its end." % files.directory)


def fail_with_fault(module, files):
    """Fail with the message of a detached run that ended by a fault of its own; a fresh call drops an older one."""
    fault = jobs.take_result([files.fault])
    if fault and not module.params["fresh"]:
        module.fail_json(msg=fault["msg"])


def main():
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "default": "/var/lib/kepler/qualification"},
            "root": {"type": "path", "default": "/opt/kepler"},
            "load": {"type": "path", "required": True},
            "graphs": {"type": "path"},
            "device": {"type": "str", "choices": ["kepler", "verify", "cpu"], "default": "kepler"},
            "mode": {"type": "str", "choices": ["run", "skip"], "default": "run"},
            "seconds": {"type": "int", "default": 90},
            "pair_timeout": {"type": "int", "default": 120},
            "profile": {"type": "dict", "required": True},
            "temperature": {"type": "int"},
            "retry": {"type": "bool", "default": False},
            "nvidia_smi": {"type": "str", "default": "nvidia-smi"},
            "kmsg": {"type": "path", "default": "/dev/kmsg"},
            "fresh": {"type": "bool", "default": True},
            "detach": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    if params["temperature"] is not None:
        params["profile"]["limits"]["temperature"] = params["temperature"]
    files = Files(params["directory"])
    result = {"running": False, "started": False, "progress": "", "reasons": []}
    if is_locked(files.lock):
        answer_while_busy(module, files, result)
    if not module.check_mode:
        fail_with_fault(module, files)
    host, error = read_host(params)
    if error:
        error = "nvidia-smi: found %s; expected the %s GPUs of the host. Run playbooks/host.yml first." % (
            error, params["profile"]["gpu"]["name"]
        )
        if not module.check_mode:
            module.fail_json(msg=error)
    result["fault"] = error or ""
    record, result["reasons"] = read_record(params, files, host)
    result["stages"] = qualification.stages(host["dies"], params["device"], params["profile"])
    if not result["reasons"]:
        module.exit_json(changed=False, record=record, **result)
    if module.check_mode:
        result["fault"] = result["fault"] or environment_fault(params)
        module.exit_json(changed=True, **result)
    lock = Lock(files.lock)
    if not lock.acquire(wait=False):  # another run has started meanwhile
        module.exit_json(changed=True, **dict(result, running=True))
    made = skip_load(files, params, host, result["stages"])
    if made:
        write_atomically(files.record, made)
        module.exit_json(changed=True, record=made, **result)
    try:
        options = options_of(params)
    except ValueError as fault:
        module.fail_json(msg=str(fault))
    if os.path.exists(files.record):  # the record is out of date now, and must not survive a halt of the machine
        os.unlink(files.record)
    if params["detach"]:
        # The process inherits the lock.
        jobs.start(lambda: work(files, lock, host, options))
        result.update(running=True, started=True, progress="starting")
        module.exit_json(changed=True, **result)
    module.exit_json(changed=True, record=work(files, lock, host, options), **result)


if __name__ == "__main__":
    main()
