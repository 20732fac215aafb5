# The interpreter and its standard library, without what nobody runs in a container.
tar -C "$PREFIX" --exclude='__pycache__' --exclude='*.a' --exclude='./share' --exclude='./include' \
    --exclude='./lib/{{ profile.python.command }}/test' --exclude='./lib/{{ profile.python.command }}/site-packages/*' \
    -cf - . | tar -C "$out" -xf -
# Hash-based bytecode: with the store's fixed times, bytecode checked by time would look fresh for ever.
"$out/bin/{{ profile.python.command }}" -m compileall -q --invalidation-mode unchecked-hash "$out/lib" || true
