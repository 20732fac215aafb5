"""Everything that works on a store, at once and at random: no rule of the store is ever seen broken.

INTERLEAVING_SECONDS lets it run longer than a few seconds, INTERLEAVING_SEED begins with another seed.
"""

import os
from pathlib import Path

import interleaving
from module_utils.store import address, build, collect, generation, verify
from recipes import needs_namespaces, recipe
from test_faults import assert_whole

pytestmark = needs_namespaces

SECONDS = float(os.environ.get("INTERLEAVING_SECONDS", "5"))
SEED = int(os.environ.get("INTERLEAVING_SEED", "1"))


def test_everything_at_once(root):
    build.Paths(root, recipe()).make()
    done, kills = interleaving.run(root, SEED, SECONDS)
    broken = Path(root + ".broken")
    assert not broken.exists(), broken.read_text()
    print("\n%s, %d kills" % (", ".join("%s: %d" % item for item in done.items()), kills))
    assert set(interleaving.PARTS) <= set(done), done
    # One more of each takes up what the killed have left.
    build.realise(root, recipe(), [], [])
    collect.collect(root)
    collect.collect(root, sources=True)
    assert_whole(root)
    paths = collect.outputs(root)
    for path in paths:
        assert verify.verify(path) == []
        generation.check_whole(root, {"one": path})
    assert os.listdir(os.path.join(root, "trash")) == os.listdir(os.path.join(root, "build")) == []
    assert sorted(os.listdir(os.path.join(root, "store"))) == [address.name_of(path) for path in paths]
