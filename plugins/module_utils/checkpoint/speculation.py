"""Settings of an instance's speculative_config: who proposes the tokens that a step checks together."""

import json
import re

from .limits import ROWS

# The option of vLLM that has the settings, as a JSON text.
OPTION = "speculative-config"
METHODS = ("ngram", "draft_model")
LOOKUP = ("prompt_lookup_max", "prompt_lookup_min")
DRAFT = ("model", "revision", "draft_tensor_parallel_size")
# Numbers: the least, the most (None where there is none), and what is expected.
NUMBERS = {
    "num_speculative_tokens": (1, ROWS - 1, "an integer of 1 to %d" % (ROWS - 1)),
    "prompt_lookup_max": (1, None, "an integer from 1"),
    "prompt_lookup_min": (1, None, "an integer from 1"),
    "disable_by_batch_size": (2, None, "an integer from 2"),
    "draft_tensor_parallel_size": (1, 1, "1: a draft model runs on the first GPU alone"),
}
KEYS = ("method",) + DRAFT + LOOKUP + ("num_speculative_tokens", "disable_by_batch_size")
# Draft models that read what the model itself has computed, by the type in their config.json.
HEADS = {
    "medusa": "Medusa heads", "mlp_speculator": "an MLP speculator", "eagle": "EAGLE layers",
    "deepseek_mtp": "layers that predict several tokens (MTP)", "mimo_mtp": "layers that predict several tokens (MTP)",
}
PLAIN = "a language model of its own"
# A draft whose files the engine would have to make: what is found, and expected.
ALONE = ("a GGUF file alone", "one with a config.json and a tokenizer beside it")


def is_name(model):
    """Return whether it can name a model; upstream takes two names for prompt lookup."""
    return (isinstance(model, str) and bool(model.strip()) and model.isprintable() and model[0] not in ".- "
            and model not in ("ngram", "[ngram]"))


def mapping(value):
    """Return the mapping in a JSON text, as options of vLLM have it; None where there is none."""
    try:
        found = json.loads(value)
    except (TypeError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def faults(settings):
    """(key, found, expected) of each thing that the port cannot do, for the mapping that speculative_config holds."""
    found = []
    for key in sorted(set(settings) - set(KEYS)):
        found.append((key, repr(settings[key]), "one of the keys " + ", ".join(KEYS)))
    model, method = settings.get("model"), settings.get("method")
    if method is None and model is not None:
        method = "draft_model"
    if method not in METHODS:
        return found + [("method", "nothing" if method is None else repr(method),
                         "ngram for prompt lookup, or draft_model with the key model")]
    if method == "draft_model" and not is_name(model):
        found.append(("model", "nothing" if model is None else repr(model),
                      "the name of a Hugging Face model or the absolute path of its directory on the host"))
    for key in DRAFT if method == "ngram" else LOOKUP:
        if key in settings:
            found.append((key, repr(settings[key]), "none beside method %s" % method))
    for key, (least, most, expected) in sorted(NUMBERS.items()):
        value = settings.get(key)
        if key in settings or key == "num_speculative_tokens":
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or value < least or (most is not None and value > most):
                found.append((key, "nothing" if value is None else repr(value), expected))
    revision = settings.get("revision")
    if revision is not None and not (isinstance(revision, str) and re.match(r"[0-9a-f]{40}\Z", revision)):
        found.append(("revision", repr(revision), "the 40 hexadecimal digits of a commit on the hub"))
    elif revision is not None and str(model).startswith("/"):
        found.append(("revision", repr(revision), "none, since the draft model is a directory"))
    if not found and all(key in settings for key in LOOKUP) and settings[LOOKUP[1]] > settings[LOOKUP[0]]:
        found.append((LOOKUP[1], repr(settings[LOOKUP[1]]), "at most prompt_lookup_max, %d" % settings[LOOKUP[0]]))
    return found


def draft_faults(kind, vocabulary, target):
    """(found, expected) of each thing about a draft model that the port cannot do.

    Args:
        kind: model_type of its config.json.
        vocabulary: its number of tokens; None where nobody knows it.
        target: the number of tokens of the model that it drafts for.
    """
    if str(kind) in HEADS:
        return [(HEADS[str(kind)], PLAIN)]
    if vocabulary is not None and target is not None and vocabulary != target:
        return [("a vocabulary of %d tokens" % vocabulary, "that of the model, %d" % target)]
    return []


def most_sequences(tokens, disable_by_batch_size=None):
    """Return the most running sequences that speculate: `tokens` of each are checked beside its next one, ROWS in all.

    Args:
        disable_by_batch_size: the number of sequences from which nobody speculates.
    """
    return max(1, ROWS // (tokens + 1)) if disable_by_batch_size is None else disable_by_batch_size - 1
