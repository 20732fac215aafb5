"""Which parsers a model's chat template stands for."""

import json

import pytest
from vllm_serving import envs, models, parsers

HERMES = "<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>"
QWEN3 = HERMES + "{%- if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>{% endif %}"
LLAMA = '<|python_tag|> {"name": function name, "parameters": dictionary of argument name and its value}'
DEEPSEEK = parsers.TOOLS[3].has[0]
THINK, CALL = ("<think>", "</think>"), ("<tool_call>", "</tool_call>")
# Type, template, added tokens, parsers of tool calls and of reasoning.
MODELS = [
    ("qwen2", HERMES, CALL, "hermes", None), ("llama", HERMES, CALL, "hermes", None), ("qwen2", HERMES, (), None, None),
    ("qwen3", QWEN3, THINK + CALL, "hermes", "qwen3"), ("qwen3", QWEN3, CALL, "hermes", None),
    ("qwen3_moe", HERMES + "<function=name>", THINK + CALL, None, None),
    ("qwen2", "{{ '<think>\\n' }}", THINK, None, None),
    ("mistral", "[AVAILABLE_TOOLS] [TOOL_CALLS]", ("[TOOL_CALLS]",), "mistral", None),
    ("mistral", "[AVAILABLE_TOOLS] [TOOL_CALLS]", (), None, None),
    ("llama", LLAMA, ("<|python_tag|>",), "llama3_json", None), ("llama", LLAMA, (), None, None),
    ("granite", "<|tool_call|> Here is my thought process:", (), "granite", "granite"),
    ("deepseek_v3", DEEPSEEK, parsers.TOOLS[3].tokens, "deepseek_v3", None),
    ("qwen2", DEEPSEEK, parsers.TOOLS[3].tokens, None, None), ("llama", "", (), None, None),
]


@pytest.fixture
def chosen(tmp_path):
    """Function from a model to the arguments of vLLM."""

    def choose(kind, template, tokens, options=(), variables=(), as_list=False, in_tokenizer=False):
        said = {"chat_template": [{"name": "default", "template": template}] if as_list else template}
        added = [{"content": token} for token in tokens]
        if in_tokenizer:
            (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
        else:
            said["added_tokens_decoder"] = dict(enumerate(added))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        return models.parser_arguments({"model": str(tmp_path), **dict(options)}, dict(variables))

    return choose


@pytest.mark.parametrize("in_tokenizer", [False, True])
@pytest.mark.parametrize(("kind", "template", "tokens", "tools", "reasoning"), MODELS)
def test_a_template_names_its_parsers(chosen, kind, template, tokens, tools, reasoning, in_tokenizer):
    expected = ["--enable-auto-tool-choice", "--tool-call-parser", tools] if tools else []
    expected += ["--reasoning-parser", reasoning] if reasoning else []
    assert chosen(kind, template, tokens, in_tokenizer=in_tokenizer) == expected
    assert chosen(kind, template, tokens, as_list=True) == expected


@pytest.mark.parametrize(("options", "expected"), [
    ({"tool-call-parser": "mine"}, ["--reasoning-parser", "qwen3"]),
    ({"enable-auto-tool-choice": True}, ["--reasoning-parser", "qwen3"]),
    ({"reasoning-parser": "granite"}, ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]),
    ({"tokenizer": "/other"}, []), ({"chat-template": "{{ x }}"}, []),
])
def test_an_option_decides_before_the_template(chosen, options, expected):
    assert chosen("qwen3", QWEN3, THINK + CALL, options) == expected


def test_parsers_can_be_turned_off(chosen):
    assert chosen("qwen3", QWEN3, THINK + CALL, variables={"VLLM_SERVING_PARSERS": "0"}) == []
    assert envs.wants_parsers({})


@pytest.mark.parametrize("template", [5, True, {"default": HERMES}, [HERMES, None, {"name": "default"}]])
def test_templates_that_are_no_texts_name_no_parsers(chosen, template):
    assert chosen("qwen2", template, CALL) == []


def test_files_that_cannot_be_read_name_no_parsers(chosen, tmp_path):
    """A template that is no text, tokens nested too deep, and a template that is too long for a path."""
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff" + HERMES.encode())
    assert chosen("qwen2", "", CALL) == []
    assert chosen("qwen2", "", CALL, {"chat-template": "/" + HERMES * 200})[-1] == "hermes"
    (tmp_path / "tokenizer.json").write_text('{"added_tokens":' * 10**5)
    assert chosen("qwen2", HERMES, ()) == []


def test_a_template_of_its_own_file_counts(chosen, tmp_path):
    (tmp_path / "chat_template.jinja").write_text(HERMES)
    assert chosen("qwen2", "", CALL)[-1] == "hermes"
    (tmp_path / "own.jinja").write_text("nothing")
    assert chosen("qwen2", "", CALL, {"chat-template": str(tmp_path / "own.jinja")}) == []
