# CPython from its release archive. $OPTIMISE: yes for PGO and LTO, whose bytes depend on the machine.
tar -xf "$src"/Python-*.tar.xz --strip-components=1
echo "##progress configuring CPython"
options=""
if [ "$OPTIMISE" = yes ]; then options="--enable-optimizations --with-lto"; fi
# shellcheck disable=SC2086 # several words, or none
./configure --prefix="$out" --enable-shared --with-ensurepip=install $options \
    LDFLAGS="-Wl,-rpath,$out/lib" > configure.log || { tail -n 30 configure.log; exit 1; }
echo "##progress compiling CPython"
make -j"$KEPLER_JOBS"
make install
# What the server imports must be there: CPython's build skips a module in silence when its library is missing.
"$out/bin/{{ profile.python.command }}" -c 'import bz2, ctypes, ensurepip, hashlib, lzma, sqlite3, ssl, uuid, venv, zlib'
