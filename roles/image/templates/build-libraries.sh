# Libraries of the host, by the names that the loader looks for: $LIBRARIES has a sha256, a path and a name in each line.
mkdir "$out/lib"
printf '%s' "$LIBRARIES" | while read -r sha256 path name; do
    echo "$sha256  $path" | sha256sum --quiet --check
    cp "$path" "$out/lib/$name"
done
