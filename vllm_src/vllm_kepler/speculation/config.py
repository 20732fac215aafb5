"""Settings of a server that speculates, before a weight is read."""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from .. import settings
from ..checkpoint import speculation as rules
from ..errors import SettingError

if TYPE_CHECKING:
    from vllm.config import SpeculativeConfig, VllmConfig

logger = init_logger("vllm.kepler.speculation")

WORKER = "vllm_kepler.speculation.worker.create_worker"


def register() -> None:
    """Let vLLM handle a step's output beside the next step: the scheduler says where, and upstream never does."""
    from vllm.config import ModelConfig

    upstream = ModelConfig.verify_async_output_proc
    if hasattr(upstream, "__wrapped__"):
        return

    @functools.wraps(upstream)
    def verify_async_output_proc(
        self: ModelConfig, parallel: object, speculative: SpeculativeConfig | None, device: object
    ) -> None:
        upstream(self, parallel, None, device)

    ModelConfig.verify_async_output_proc = verify_async_output_proc


def refuse(key: str, found: str, expected: str) -> None:
    raise SettingError(
        f"speculative_config.{key}: found {found}; expected {expected}. Correct it, or leave speculative_config out."
    )


def apply_defaults(config: VllmConfig, worker: str) -> None:
    """Name the class of the ranks' workers; if the server speculates, set what the port requires and check the draft.

    worker: the class that runs one model. Raises SettingError for what the port does not have.
    """
    speculative, parallel = config.speculative_config, config.parallel_config
    if parallel.worker_cls == "auto":
        parallel.worker_cls = worker if speculative is None else WORKER
        parallel.sd_worker_cls = worker
    if speculative is None:
        return
    from .scheduler import SpeculativeScheduler

    for fault in rules.faults(settings_of(speculative)):
        refuse(*fault)
    beside = {
        "enable_lora: found true": config.lora_config is not None,
        f"pipeline_parallel_size: found {parallel.pipeline_parallel_size}": parallel.pipeline_parallel_size > 1,
        "task: found a model that generates no tokens": config.model_config.runner_type != "generate",
    }
    for found, is_asked in beside.items():
        if is_asked:
            raise SettingError(f"{found} beside a speculative_config; expected one of the two. Leave one of them out.")
    config.scheduler_config.scheduler_cls = functools.partial(SpeculativeScheduler, speculative)
    # Upstream's default answers requests for log-probabilities with zeros.
    speculative.disable_logprobs = False
    if speculative.disable_by_batch_size is None:
        most = rules.most_sequences(speculative.num_speculative_tokens)
        # Upstream starts at 2: one sequence alone may always speculate.
        speculative.disable_by_batch_size = most + 1
    what = "prompt lookup"
    if speculative.method == "draft_model":
        apply_draft(config)
        what = f"draft model {speculative.model} on the first GPU"
    logger.info(
        "Speculative decoding: %s, %d tokens a step, for up to %d running sequences.",
        what, speculative.num_speculative_tokens, speculative.disable_by_batch_size - 1,
    )


def settings_of(speculative: SpeculativeConfig) -> dict[str, object]:
    """Return the settings that the user named, of a config that upstream has completed."""
    found = {"method": speculative.method, "num_speculative_tokens": speculative.num_speculative_tokens}
    keys = ["disable_by_batch_size"]
    if speculative.method == "ngram":
        keys += rules.LOOKUP
    else:
        keys += ["model"]
    found.update({key: getattr(speculative, key) for key in keys if getattr(speculative, key) is not None})
    for key, default in (("acceptance_method", "rejection_sampler"), ("speculative_token_tree", None)):
        if getattr(speculative, key) != default:
            found[key] = getattr(speculative, key)
    return found


def apply_draft(config: VllmConfig) -> None:
    """Put the draft model on one GPU, which has no sums to wait for. Raises SettingError for one that cannot draft."""
    from vllm.config import SpeculativeConfig

    speculative = config.speculative_config
    draft = speculative.draft_model_config
    for found, expected in rules.draft_faults(
        draft.hf_config.model_type, draft.get_vocab_size(), config.model_config.get_vocab_size()
    ):
        refuse("model", found, expected)
    speculative.draft_tensor_parallel_size = 1
    speculative.draft_parallel_config = SpeculativeConfig.create_draft_parallel_config(config.parallel_config, 1)
    # Judges its files as those of any model.
    draft_config(config)


def draft_config(config: VllmConfig) -> VllmConfig:
    """The engine's config as the draft model's worker gets it."""
    from vllm.config import VllmConfig

    made = copy.deepcopy(config)
    speculative, made.speculative_config = made.speculative_config, None
    made.model_config, made.parallel_config = speculative.draft_model_config, speculative.draft_parallel_config
    made.parallel_config.worker_cls = config.parallel_config.sd_worker_cls
    made.quant_config = VllmConfig.get_quantization_config(made.model_config, made.load_config)
    # A sequence whose proposals were all accepted has two rows: the token that was accepted last is new to the draft.
    made.scheduler_config.max_num_seqs *= 2
    settings.apply_defaults(made, graphs=not config.model_config.enforce_eager)
    return made
