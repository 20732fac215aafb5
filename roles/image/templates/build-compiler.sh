# The compiler of the host, its headers and what it links with: $PARTS has a place and a path in each line. It finds them
# in the copy, whatever the base has; their libraries are in the output of libraries.
printf '%s' "$PARTS" | while read -r place path; do
    mkdir -p "$out/$(dirname "$place")"
    # Links that lead nowhere are left out; the digest tells what else is missing.
    cp -rL "$path" "$out/$place" || true
done
found="$(cd "$out" && find . -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1)"
[ "$found" = "$DIGEST" ] || { echo "found the digest $found; expected $DIGEST: the compiler of the host has changed"; exit 1; }
# The linker's scripts name them so.
ln -s usr/lib "$out/lib"
ln -s usr/lib64 "$out/lib64"
mkdir "$out/bin"
for name in gcc g++; do
    [ ! -e "$out/usr/bin/$name" ] || {
        printf '#!/bin/sh\nexec %s -B %s --sysroot=%s "$@"\n' "$out/usr/bin/$name" "$out/usr/bin/" "$out" > "$out/bin/$name"
        chmod 755 "$out/bin/$name"
    }
done
