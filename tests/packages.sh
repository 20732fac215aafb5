# To be sourced at the project's root.

# packages NAME LOCK PYTHON: installs the locked packages for that Python, once for each lock, beside no others; prints
# their directory.
packages() {
    local directory
    directory="$KEPLER_CACHE/venv/$1-$(sha256sum "requirements/$2.txt" | cut -c1-12)"
    if [ ! -e "$directory/.ready" ]; then
        rm -rf "$directory"
        python -m pip --python "$3" install --quiet --disable-pip-version-check --no-deps --require-hashes \
            --target "$directory" -r "requirements/$2.txt" >&2 || return
        touch "$directory/.ready"
    fi
    echo "$directory"
}
