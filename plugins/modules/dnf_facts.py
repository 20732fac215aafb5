#!/usr/bin/python
"""Ask dnf which of the locked packages it would install, without changing anything."""

DOCUMENTATION = r"""
module: dnf_facts
short_description: What dnf offers of the locked packages, and what in its settings stands in the way
author: vllm-kepler (!UNKNOWN)
extends_documentation_fragment: kepler.vllm.attributes
description:
  - Queries the host's repositories for the locked packages, past excludes, version locks and module streams, and reads
    these settings. Then it has dnf resolve the installation with the settings as they are, and abort.
  - Repositories that the host is to get take part from a temporary directory. Signatures are not checked; nothing is
    downloaded but metadata, which dnf keeps in its cache.
  - It checks nothing; the filter P(kepler.vllm.repository_findings#filter) does.
options:
  rpms:
    description: Entries of rpms.yml of the host's lock.
    type: list
    elements: dict
    required: true
  repositories:
    description: Repositories that the host is to get; one that it has under the same name is left out.
    type: list
    elements: dict
    default: []
    suboptions:
      id:
        description: Name of the repository.
        type: str
        required: true
      baseurl:
        description: Its address.
        type: str
        required: true
      description:
        description: Its name for people.
        type: str
        required: true
  streams:
    description: Module streams that the packages come from, as name:stream.
    type: list
    elements: str
    default: []
  query:
    description: Whether to start dnf; without it the settings alone are read.
    type: bool
    default: true
  root:
    description: Directory that stands for C(/) where settings are read.
    type: path
    default: /
"""

EXAMPLES = r"""
- name: Ask the repositories for the locked packages
  kepler.vllm.dnf_facts:
    rpms: "{{ kepler_lock.rpms }}"
    repositories: [{id: epel, description: EPEL 8, baseurl: "{{ repos_epel_baseurl }}"}]
    streams: "{{ kepler_lock | kepler.vllm.locked_streams }}"
  register: offers
"""

RETURN = r"""
dnf:
  description:
    - >-
      C(offers) and C(installed) (lists of name, epoch, version, release, arch, repo), C(failures) (repository to
      reason), C(error) (of the query, or empty), C(exclusions) (list of file, line, section, option, pattern),
      C(locks) (lines of the versionlock list that others wrote: file, line, pattern), C(modules) (module to state and
      stream), C(repositories) (list of id, file, line, enabled, skip), C(missing_streams), C(refusals) (package to
      dnf's reason), C(problem) (dnf's text, or empty) and C(transaction) (dnf's title of a part to names).
  type: dict
  returned: success
"""

import glob
import os
import shutil
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kepler.vllm.plugins.module_utils import dnf_settings, facts, rpms

# These are the directories that dnf reads unless dnf.conf names others.
REPOSITORY_DIRECTORIES = ("/etc/yum.repos.d", "/etc/yum/repos.d", "/etc/distro.repos.d")
PLUGIN_SETTINGS = "/etc/dnf/plugins"
# A repository that fails must not hide what the others offer, and a query needs no signature of the metadata.
OVERLAY = {"skip_if_unavailable": "1", "repo_gpgcheck": "0"}
INSTALLED_FORMAT = "%{NAME}|%{EPOCHNUM}|%{VERSION}|%{RELEASE}|%{ARCH}|installed\n"


def read_settings(root):
    """Read dnf's settings: (texts of dnf.conf and repositories by path, path of the version locks, their text)."""

    def at(path):
        return os.path.join(root, path.lstrip("/"))

    main = facts.read_raw(at(dnf_settings.DNF_CONF)) or ""
    named = [option for option in dnf_settings.options(main) if option["option"] == "reposdir"]
    directories = [word for word, _ in named[-1]["words"]] if named else REPOSITORY_DIRECTORIES
    texts = {dnf_settings.DNF_CONF: main}
    for directory in directories:
        for path in sorted(glob.glob(os.path.join(at(directory), "*.repo"))):
            texts[os.path.join(directory, os.path.basename(path))] = facts.read_raw(path) or ""
    plugin = dnf_settings.options(facts.read_raw(at(PLUGIN_SETTINGS + "/versionlock.conf")))
    listed = [dnf_settings.value_of(option) for option in plugin if option["option"] == "locklist"]
    locks = listed[-1] if listed else PLUGIN_SETTINGS + "/versionlock.list"
    return texts, locks, facts.read_raw(at(locks))


def facts_of_settings(module):
    """Read dnf's settings."""
    root = module.params["root"]
    texts, locks, locked = read_settings(root)
    records = sorted(glob.glob(os.path.join(root, "etc/dnf/modules.d/*.module")))
    skips = dnf_settings.truth_of(texts[dnf_settings.DNF_CONF], "main", "skip_if_unavailable")
    return texts, {
        "exclusions": [one for path in sorted(texts) for one in dnf_settings.exclusions(path, texts[path])],
        "repositories": [one for path in sorted(texts) for one in dnf_settings.repositories(path, texts[path], skips)],
        "locks": dnf_settings.version_locks(locks, locked),
        "modules": dnf_settings.module_states(facts.read_raw(path) for path in records),
    }


def write(path, text):
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(text)


def lay_out(module, directory, texts, found):
    """Write repositories and settings of plugins, as the roles will find them, below `directory`; dnf's options."""
    added = [repository["id"] for repository in module.params["repositories"]]
    overlay = "".join("%s=%s\n" % item for item in sorted(OVERLAY.items()))
    for number, path in enumerate(sorted(texts)):
        if path.endswith(".repo"):
            write(os.path.join(directory, "repos", "%03d.repo" % number),
                  dnf_settings.overlaid(texts[path], added, OVERLAY))
    for repository in module.params["repositories"]:
        write(os.path.join(directory, "repos", "added-%s.repo" % repository["id"]),
              "[{id}]\nname={description}\nbaseurl={baseurl}\n".format(**repository) + overlay)
    # Locks of an earlier run of the roles go with the installation; those of others stay.
    settings = os.path.join(module.params["root"], PLUGIN_SETTINGS.lstrip("/"))
    for path in glob.glob(os.path.join(settings, "*.conf")):
        if os.path.basename(path) != "versionlock.conf":
            shutil.copy(path, os.path.join(directory, "plugins"))
    locks = os.path.join(directory, "versionlock.list")
    write(locks, "".join(lock["pattern"] + "\n" for lock in found["locks"]))
    write(os.path.join(directory, "plugins", "versionlock.conf"), "[main]\nenabled=1\nlocklist=%s\n" % locks)
    return ["--setopt=reposdir=%s/repos" % directory, "--setopt=pluginconfpath=%s/plugins" % directory]


def query(module, dnf):
    """Query the offered versions of the locked names, without the host's excludes and locks."""
    status, printed, complaints = module.run_command(
        dnf + ["--disableplugin=versionlock", "--disableexcludes=all", "repoquery", "--disable-modular-filtering",
               "--queryformat=" + dnf_settings.QUERY_FORMAT]
        + sorted({entry["name"] for entry in module.params["rpms"]})
    )
    return {
        "offers": dnf_settings.packages(printed),
        "failures": dnf_settings.failures(complaints),
        "error": dnf_settings.error(complaints) or complaints.strip() if status else "",
    }


def installed(module):
    """Packages on the host that have the name of a locked one."""
    names = {entry["name"] for entry in module.params["rpms"]}
    _, printed, _ = module.run_command(["rpm", "-qa", "--queryformat", INSTALLED_FORMAT])
    return [package for package in dnf_settings.packages(printed) if package["name"] in names]


def dry_run(module, dnf, found):
    """Simulate the installation of all missing packages with the host's settings."""
    wanted = [
        entry for entry in module.params["rpms"]
        if rpms.is_wanted(entry, found["installed"])
        and any(rpms.accepts(entry, package) for package in found["offers"])
        and not any(rpms.accepts(entry, package) for package in found["installed"])
    ]
    dnf = dnf + ["--assumeno", "--cacheonly"] + ["--disablerepo=" + name for name in sorted(found["failures"])]
    answer = {"missing_streams": [], "refusals": {}, "problem": "", "transaction": {}}
    modular = [entry for entry in wanted if "module" in entry]
    if modular and module.params["streams"]:
        _, printed, complaints = module.run_command(dnf + ["module", "enable"] + module.params["streams"])
        answer["missing_streams"] = dnf_settings.missing_streams(printed + complaints)
    if wanted:
        # The streams are not enabled yet: their repositories are asked as if they had no modules.
        homes = {package["repo"] for entry in modular for package in found["offers"] if rpms.accepts(entry, package)}
        dnf = dnf + ["--setopt=%s.module_hotfixes=1" % repository for repository in sorted(homes)]
        _, printed, complaints = module.run_command(dnf + ["install"] + [rpms.spec(entry) for entry in wanted])
        refused = dnf_settings.refusals(printed + complaints)
        answer.update(
            refusals=refused,
            problem="" if refused else dnf_settings.error(complaints),
            transaction=dnf_settings.transaction(printed),
        )
    return answer


def ask(module, texts, found):
    """Start dnf: the query, then the dry run."""
    directory = tempfile.mkdtemp(prefix="kepler-dnf-", dir=module.tmpdir)
    try:
        for name in ("repos", "plugins"):
            os.mkdir(os.path.join(directory, name))
        dnf = ["dnf", "--nogpgcheck"] + lay_out(module, directory, texts, found)
        found.update(query(module, dnf))
        found.update(dry_run(module, dnf, found))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def main():
    repository = {name: {"type": "str", "required": True} for name in ("id", "baseurl", "description")}
    module = AnsibleModule(
        argument_spec={
            "rpms": {"type": "list", "elements": "dict", "required": True},
            "repositories": {"type": "list", "elements": "dict", "default": [], "options": repository},
            "streams": {"type": "list", "elements": "str", "default": []},
            "query": {"type": "bool", "default": True},
            "root": {"type": "path", "default": "/"},
        },
        supports_check_mode=True,
    )
    # dnf's messages are parsed, so they must be in English.
    module.run_command_environ_update = {"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "LANGUAGE": "C"}
    texts, found = facts_of_settings(module)
    found.update(offers=[], failures={}, error="", missing_streams=[], refusals={}, problem="", transaction={})
    found["installed"] = installed(module) if module.get_bin_path("rpm") else []
    if module.params["query"]:
        if module.get_bin_path("dnf"):
            ask(module, texts, found)
        else:
            found["error"] = "no program dnf on the host"
    module.exit_json(changed=False, dnf=found)


if __name__ == "__main__":
    main()
