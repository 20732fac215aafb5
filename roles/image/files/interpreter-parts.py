"""Print the prefix of this interpreter and, below it, the parts that it needs: the program and the standard library.

Argument `headers`: those, too, if they are there.
"""

import os
import sys

prefix, name = sys.base_prefix, "python%d.%d" % sys.version_info[:2]
print(prefix)
parts = ["bin/" + name, "lib/" + name, "lib64/" + name]
if sys.argv[1:] == ["headers"] and os.path.exists(os.path.join(prefix, "include", name, "Python.h")):
    parts.append("include/" + name)
for part in parts:
    path = os.path.join(prefix, part)
    # lib64 may be a link to lib.
    if os.path.exists(path) and os.path.realpath(path) == os.path.join(os.path.realpath(prefix), part):
        print(part)
