"""Phases, log lines and metrics of vLLM, one table for each version. The package vllm_serving has the same files."""

from . import v0_9_2, v0_12_0

# By the version in the name of each, as 0.9.2.
TABLES = {table.__name__.rpartition(".v")[2].replace("_", "."): table for table in (v0_9_2, v0_12_0)}


def table_of(version):
    """Return the table of a version of vLLM, which may name its build too, such as 0.9.2+empty. Raises ValueError."""
    release = version.partition("+")[0].partition(".post")[0]
    if release not in TABLES:
        raise ValueError("vLLM: found version %s; expected %s. Write its table into vllm_serving/versions."
                         % (version, " or ".join(sorted(TABLES))))
    return TABLES[release]
