# A store path for an interpreter that the host has already: everything above refers to it by this one.
mkdir -p "$out/bin"
ln -s "$INTERPRETER" "$out/bin/{{ profile.python.command }}"
