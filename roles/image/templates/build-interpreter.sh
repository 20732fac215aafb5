# The interpreter and its standard library, without what nobody runs in a container.
# shellcheck disable=SC2086 # several parts
tar -C "$PREFIX" --exclude=__pycache__ --exclude='*.a' --exclude='lib*/python*/test' \
    --exclude='lib*/python*/site-packages/*' -cf - $PARTS | tar -C "$out" -xf -
# Hash-based bytecode: with the store's fixed times, bytecode checked by time would look fresh for ever.
"$PREFIX/bin/{{ profile.python.command }}" -m compileall -q --invalidation-mode unchecked-hash "$out" || true
