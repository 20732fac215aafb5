"""Checks of parsed requests, before they are queued.

vLLM's own handlers are wrapped instead of reading bodies a second time: every path and every form of a field ends
there, with prompts as token ids and guides in the form that the compiler reads.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError
from vllm_serving.errors import ConfigError, Rejected
from vllm_serving.limits import Limits

from ..exact_tokenizer import exact
from .guides import Guides

BACKEND = "guidance"
# Upstream's handlers, of which a model has some, and their calls that are checked.
HANDLERS = {
    "tokenization": ("create_tokenize",), "chat": ("create_chat_completion",), "completion": ("create_completion",),
    "embedding": ("create_embedding",), "pooling": ("create_pooling",), "classification": ("create_classify",),
    "scores": ("create_score", "do_rerank"), "transcription": (), "translation": (),
}


async def guard(state: Any, limits: Limits) -> Limits:
    """Wrap the handlers of a vLLM that is about to serve, and return the limits of its model.

    state: of vLLM's application. Raises ConfigError for a server whose guides cannot be checked.
    """
    backend = state.vllm_config.decoding_config.backend
    if backend != BACKEND:
        raise ConfigError(f"guided-decoding-backend: found {backend}; expected {BACKEND}: a guide that another one "
                          "cannot read ends the engine. Leave it out.")
    from vllm.engine.multiprocessing import client as engine_client

    engine_client.build_guided_decoding_logits_processor_async = leave_guide
    client, model = state.engine_client, state.vllm_config.model_config
    tokenizer = await client.get_tokenizer()
    limits = limits_of(model, tokenizer, limits)
    client.generate, client.encode = (checked_queue(queue, limits) for queue in (client.generate, client.encode))
    check, tokenizing = RequestCheck(model, tokenizer, limits.vocabulary), ThreadPoolExecutor(1)
    for name, calls in HANDLERS.items():
        if (handler := getattr(state, f"openai_serving_{name}")) is None:
            setattr(state, f"openai_serving_{name}", AbsentHandler(state.openai_serving_tokenization))
            continue
        for call in calls:
            setattr(handler, call, checked_handler(handler, getattr(handler, call), check))
        share_tokenizer(handler, tokenizing)
    return limits


async def leave_guide(sampling_params: Any, **_options: Any) -> Any:
    """Let the engine prepare a guide.

    Upstream prepares it here and sends it with the whole tokenizer: 2 s and 50 MB for 150,000 words.
    """
    return sampling_params


def share_tokenizer(handler: Any, executor: ThreadPoolExecutor) -> None:
    """Let a handler use the tokenizer on this executor alone.

    Upstream has one for each handler, and a tokenizer whose truncation changes while another thread uses it raises
    "Already borrowed".
    """
    from vllm.utils import make_async

    handler._tokenizer_executor = executor
    for name in ("_tokenize_prompt_input", "_tokenize_prompt_input_or_inputs"):
        setattr(handler, f"{name}_async", make_async(getattr(handler, name), executor=executor))


def limits_of(model: Any, tokenizer: Any, limits: Limits) -> Limits:
    """Complete the operator's limits with those of the model."""
    from vllm.entrypoints.chat_utils import apply_hf_chat_template

    renderers = (apply_hf_chat_template, getattr(tokenizer, "apply_chat_template", apply_hf_chat_template))
    names = {name for renderer in renderers for name in inspect.signature(renderer).parameters}
    return replace(limits.of_model(model, tokenizer), renderer=limits.renderer | names)


def checked_queue(queue: Any, limits: Limits) -> Any:
    """Wrap a call that queues a prompt. Upstream answers its ValueError with 400, before a stream begins."""

    @functools.wraps(queue)
    def checked(prompt: Any, *arguments: Any, **options: Any) -> Any:
        try:
            limits.check_tokens("prompt", prompt.get("prompt_token_ids") or [])
        except Rejected as rejected:
            raise ValueError(str(rejected)) from None
        return queue(prompt, *arguments, **options)

    return checked


def checked_handler(handler: Any, create: Any, check: RequestCheck) -> Any:
    """Wrap one of vLLM's handlers so that it answers 400 for what the engine cannot take."""

    @functools.wraps(create)
    async def checked(request: Any, *arguments: Any, **options: Any) -> Any:
        try:
            await check(request)
        except Rejected as rejected:
            return refusal(handler, rejected.status, str(rejected))
        try:
            answer = await create(request, *arguments, **options)
        except (NotImplementedError, TemplateError) as error:
            return refusal(handler, 400, str(error) or "The server does not have what the request asks for.")
        return await begun(handler, answer) if inspect.isasyncgen(answer) else answer

    return checked


class AbsentHandler:
    """Answers for a handler that the model does not have. Upstream's own answer has status 200 and code 400."""

    def __init__(self, other: Any) -> None:
        self.other = other

    def __getattr__(self, name: str) -> Any:
        async def refuse(*_arguments: Any, **_options: Any) -> Any:
            return refusal(self.other, 400, "The model does not have this API.")

        return refuse


def refusal(handler: Any, status: int, message: str) -> Any:
    """Return an error in the form of vLLM's handlers."""
    answer = handler.create_error_response(message)
    answer.code = status
    return answer


async def begun(handler: Any, stream: Any) -> Any:
    """Wait for the first event of a stream. Returns the stream, or the error in the event.

    An error of the engine comes after upstream has begun to answer with 200.
    """
    try:
        first = await anext(stream)
    except StopAsyncIteration:
        return stream
    data = first.removeprefix("data: ") if isinstance(first, str) else ""
    if data.startswith('{"error"'):
        await stream.aclose()
        return refusal(handler, 500 if handler.engine_client.errored else 400, json.loads(data)["error"]["message"])

    async def all_events() -> Any:
        async with contextlib.aclosing(stream):
            yield first
            async for event in stream:
                yield event

    return all_events()


class RequestCheck:
    """Converts a request as upstream will, and has the compiler check its guide."""

    def __init__(self, model: Any, tokenizer: Any, vocabulary: int) -> None:
        # A copy: another thread uses the tokenizer.
        self.model, self.tokenizer, self.vocabulary = model, copy.deepcopy(tokenizer), vocabulary
        self.generation = model.try_get_generation_config()
        fast = getattr(tokenizer, "backend_tokenizer", None)
        text = exact(fast.to_str()) if fast is not None else None
        self.guides = Guides(text, getattr(tokenizer, "eos_token_id", None))

    async def __call__(self, request: Any) -> None:
        """Raise Rejected for what upstream would answer with 500, and for a guide that the compiler refuses."""
        if not hasattr(request, "to_sampling_params"):
            return
        complete_format(request)
        try:
            guided, sequences = self.guided_of(request)
            guide = guided and ({"text": guided.grammar} if guided.grammar else {"grammar": self.grammar_of(guided)})
        except Exception as error:
            raise Rejected(400, str(error) or "A field of the body is not of the kind that it must be.") from None
        if guide is None:
            return
        if request.use_beam_search:
            raise Rejected(400, "use_beam_search: a beam search knows no guide. Leave one of them out.")
        text = await self.guides.check(guide, sequences)
        if guided.grammar:
            # Else upstream converts it again, on the API's event loop.
            request.guided_grammar = text

    def guided_of(self, request: Any) -> tuple[Any, int]:
        """Return the guide of a request's sampling parameters, or None, and how many sequences it is for."""
        most = request.max_tokens or getattr(request, "max_completion_tokens", None) or self.model.max_model_len
        params = request.to_sampling_params(most, self.model.logits_processor_pattern, {})
        # The engine does this as well; not all bad_words have tokens.
        params.update_from_generation_config(self.generation, getattr(self.tokenizer, "eos_token_id", None))
        params.update_from_tokenizer(self.tokenizer)
        self.check_masks(params)
        if request.use_beam_search and getattr(request, "echo", False) and request.logprobs is not None:
            raise ValueError("echo: a beam search has no log-probabilities of the prompt. Leave one of them out.")
        prompts: Any = getattr(request, "prompt", None)
        several = isinstance(prompts, list) and prompts and not isinstance(prompts[0], int)
        return params.guided_decoding, params.n * (len(prompts) if several else 1)

    def check_masks(self, params: Any) -> None:
        """Raise ValueError if a step may have no allowed token: the probabilities would be NaN."""
        masks = [name for name in ("allowed_token_ids", "bad_words", "min_tokens") if getattr(params, name)]
        if params.guided_decoding is not None:
            if masks:
                raise ValueError(f"{masks[0]}: together with a guide it may leave no token. Leave one of them out.")
            return
        # The last token of a bad word is forbidden after the others.
        forbidden = {tokens[-1] for tokens in params.bad_words_token_ids or []}
        if params.min_tokens:
            forbidden |= params.all_stop_token_ids
        allowed = params.allowed_token_ids
        if forbidden.issuperset(allowed) if allowed else len(forbidden) >= self.vocabulary:
            raise ValueError(f"{', '.join(masks)}: together they may leave no token. Leave one of them out.")

    def grammar_of(self, guided: Any) -> str:
        """Return the grammar that upstream passes to the compiler."""
        from vllm.model_executor.guided_decoding.guidance_decoding import (
            get_local_guidance_guided_decoding_logits_processor as processor_of,
        )

        return processor_of(guided, self.tokenizer).grammar


def complete_format(request: Any) -> None:
    """Raise Rejected for a response_format that upstream ignores, and let a completion obey a schema in its own."""
    wanted = request.response_format
    if wanted is None or wanted.type in ("text", "json_object"):
        return
    if wanted.type == "structural_tag":
        raise Rejected(400, "response_format: the server has no structural tags; use json_schema.")
    schema = wanted.json_schema and wanted.json_schema.json_schema
    if schema is None:
        raise Rejected(400, "response_format: expected json_schema with a schema in it.")
    if not hasattr(request, "messages"):
        request.guided_json = schema
