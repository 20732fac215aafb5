"""Print what the image has of this host's compiler: a digest of all, then for each part its place below `/` and a path.

Argument: the directory of gcc and g++. Parts are what gcc itself names: its programs, headers, and what it links with.
Prints nothing where there is no gcc.
"""

import hashlib
import os
import shutil
import subprocess
import sys

# Names that gcc resolves: its own programs, and files that a linked library or program begins with.
PROGRAMS = ("cc1", "cc1plus", "collect2", "lto-wrapper", "liblto_plugin.so")
LIBRARIES = (
    "crt1.o Scrt1.o crti.o crtn.o libc.so libc.so.6 libc_nonshared.a libm.so libm.so.6 "
    "libmvec.so libmvec.so.1 libpthread.a libpthread.so.0 libdl.a libdl.so.2 librt.a librt.so.1 libstdc++.so.6 "
    "libgcc_s.so.1"
).split()
# Of the directory of libgcc: what gcc itself links with.
OWN = ("crt", "libgcc", "libstdc++.so", "libgomp.so", "libgomp.spec")
# Where libc.so names the loader.
LOADER = "/lib64/ld-linux-x86-64.so.2"


def ask(program, *arguments):
    """What a compiler prints, standard error included."""
    done = subprocess.Popen(
        [program] + list(arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        universal_newlines=True, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
    )
    return done.communicate()[0]


def place(path):
    """Where a file stands below `/`, by its own name in its real directory."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)).lstrip("/")


def headers(program, language):
    """Directories in which a compiler looks for headers."""
    lines = ask(program, "-E", "-v", "-x", language, "/dev/null").splitlines()
    found, inside = [], False
    for line in lines:
        if line.startswith("#include <"):
            inside = True
        elif line.startswith("End of search list"):
            inside = False
        elif inside and os.path.isdir(line.strip()):
            found.append(os.path.realpath(line.strip()))
    # What somebody has put beside the distribution's is no part of its compiler.
    return [path for path in found if not path.startswith("/usr/local/")]


def parts_of(directory):
    """{place: path} of the compiler in `directory`; empty without one."""
    gcc, gxx = (os.path.join(directory, name) for name in ("gcc", "g++"))
    if not os.access(gcc, os.X_OK):
        return {}
    found = {"usr/bin/gcc": gcc}
    roots = headers(gcc, "c")
    if os.access(gxx, os.X_OK):
        found["usr/bin/g++"] = gxx
        roots += headers(gxx, "c++")
    for name in ("as", "ld"):
        path = ask(gcc, "-print-prog-name=" + name).strip()
        path = path if os.path.isabs(path) else shutil.which(path, path="/usr/bin:/bin")
        if path:
            found["usr/bin/" + name] = path
    asked = [ask(gcc, "-print-prog-name=" + name) for name in PROGRAMS]
    asked += [ask(gcc, "-print-file-name=" + name) for name in PROGRAMS[-1:] + tuple(LIBRARIES)]
    own = os.path.dirname(ask(gcc, "-print-libgcc-file-name").strip())
    asked += [os.path.join(own, name) for name in sorted(os.listdir(own)) if name.startswith(OWN)]
    for path in [LOADER] + [text.strip() for text in asked]:
        if os.path.isfile(path) and os.path.isabs(path):
            found[place(path)] = path
    for root in roots:
        if not any(root.startswith(other + "/") for other in roots):
            found[root.lstrip("/")] = root
    return found


def files_of(root, target, above=()):
    """(place, path) of the files below a part; links count as what they lead to, and lead no way up."""
    if os.path.isfile(root):
        yield target, root
    elif os.path.isdir(root) and os.path.realpath(root) not in above:
        for name in os.listdir(root):
            for found in files_of(os.path.join(root, name), target + "/" + name, above + (os.path.realpath(root),)):
                yield found


def digest_of(parts):
    """The sha256 of what `sha256sum` prints of all files, in the order of their places."""
    digest, found = hashlib.sha256(), {}
    for target, path in parts.items():
        found.update(files_of(path, target))
    for target in sorted(found):
        with open(found[target], "rb") as stream:
            line = "%s  %s\n" % (hashlib.sha256(stream.read()).hexdigest(), target)
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


if __name__ == "__main__":
    parts = parts_of(sys.argv[1])
    if parts:
        print(digest_of(parts))
        for target in sorted(parts):
            print(target, parts[target])
