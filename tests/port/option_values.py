"""How preflight reads the values of vLLM's options, beside the parser of the installed vLLM."""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ("8", "-1", "8k", "1.5k", "8K", "1.5K", "8T", "0.5", "1e3", "1_0", " 8", "nan", "", "None", "yes", '{"a": 1}',
         "{}", "[1]", "{")


def differences(engine):
    """(option, text) that preflight refuses and vLLM takes, or the reverse: of JSON preflight knows the form alone."""
    sys.path.append(str(ROOT / "collections"))
    from ansible_collections.kepler.vllm.plugins.plugin_utils import engine_options

    installed, known = runpy.run_path(str(ROOT / "vllm_src" / "engine_models.py")), engine_options.KNOWN[engine]
    for action in installed["actions"]():
        for name in set(installed["names_of"](action)) & known.kinds.keys() - known.choices.keys():
            for text in TEXTS:
                is_taken = engine_options.unparsable(name, text, known) is None
                if is_taken != installed["takes"](action, text) and not (is_taken and known.kinds[name] == "JSON"):
                    yield name, text
