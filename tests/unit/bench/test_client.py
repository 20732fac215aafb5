"""The program that runs vLLM's benchmark: its requests as turns of conversations."""

import asyncio
import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[3] / "roles" / "bench" / "files" / "client.py"
SPECIFICATION = importlib.util.spec_from_file_location("bench_client", PROGRAM)
assert SPECIFICATION and SPECIFICATION.loader
client = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(client)


# Prompts with their headers.
POSTED: list[tuple[str, dict[str, str]]] = []


class ClientSession:
    """aiohttp's, as far as the benchmark uses it."""

    def post(self, url, json, headers):
        POSTED.append((json["prompt"], headers))


async def send(request_func_input, session=None, pbar=None):
    """vLLM's function for one request: an answer for each prompt; a prompt with `lost` gets none."""
    body = {"prompt": request_func_input.prompt}
    (session or ClientSession()).post(
        url=request_func_input.api_url, json=body, headers={"Authorization": "Bearer k"}
    )
    await asyncio.sleep(0)
    return types.SimpleNamespace(success="lost" not in request_func_input.prompt, generated_text="+answer ")


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Run the program over prompts, so many at a time, with a benchmark like vLLM's; (posts, result)."""

    def run(prompts, turns, at_a_time=1):
        async def main():
            ask = serve.ASYNC_REQUEST_FUNCS["openai"]
            asked = [
                types.SimpleNamespace(prompt=prompt, prompt_len=10, output_len=5, api_url="http://b/v1/completions")
                for prompt in prompts
            ]
            await ask(request_func_input=asked[0])
            limit = asyncio.Semaphore(at_a_time)

            async def one(request):
                async with limit:
                    await ask(request_func_input=request, pbar=None)

            await asyncio.gather(*map(one, asked))

        def benchmark(arguments):
            asyncio.run(main())
            Path(arguments.result_filename).write_text('{"completed": 1}')

        def options(parser):
            parser.add_argument("--result-filename")

        serve = types.SimpleNamespace(ASYNC_REQUEST_FUNCS={"openai": send}, add_cli_args=options, main=benchmark)
        POSTED.clear()
        monkeypatch.setattr(ClientSession, "post", ClientSession.post)
        monkeypatch.setitem(sys.modules, "aiohttp", types.SimpleNamespace(ClientSession=ClientSession))
        monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
        monkeypatch.setitem(sys.modules, "vllm.benchmarks", types.SimpleNamespace(serve=serve))
        result = tmp_path / "result.json"
        monkeypatch.setattr(sys, "argv", ["client", "--turns", str(turns), "--result-filename", str(result)])
        client.main()
        return POSTED, json.loads(result.read_text())

    return run


def test_single_requests_have_no_session(bench):
    posts, result = bench(["ab ", "cd ", "ef "], turns=1)
    assert [prompt for prompt, _ in posts[1:]] == ["ab ", "cd ", "ef "]
    assert all(headers == {"Authorization": "Bearer k"} for _, headers in posts)
    assert result == {"completed": 1, "history_tokens": 0}


def test_the_request_before_all_is_in_no_cache_afterwards(bench):
    """vLLM's benchmark makes it of the first prompt."""
    posts, _ = bench(["abcd"], turns=2)
    assert posts[0] == ("cdab", {"Authorization": "Bearer k"})


def test_a_turn_is_asked_with_all_before_it(bench):
    posts, result = bench(["a ", "b ", "c ", "d "], turns=3)
    assert [prompt for prompt, _ in posts[1:]] == ["a ", "a +answer b ", "a +answer b +answer c ", "d "]
    names = [headers["X-Session-ID"] for _, headers in posts[1:]]
    assert len(set(names[:3])) == 1
    assert names[3] != names[0]
    # 15 tokens of the first turn and 30 of the first two.
    assert result["history_tokens"] == 45


def test_so_many_conversations_at_a_time(bench):
    posts, result = bench([f"{number} " for number in range(12)], turns=2, at_a_time=3)
    sessions = [headers["X-Session-ID"] for _, headers in posts[1:]]
    assert sorted(sessions.count(name) for name in set(sessions)) == [2] * 6
    assert len(set(sessions[:3])) == 3
    assert result["history_tokens"] == 6 * 15


def test_a_conversation_ends_with_a_lost_request(bench):
    posts, _ = bench(["lost ", "b "], turns=2)
    assert [prompt for prompt, _ in posts[1:]] == ["lost ", "b "]
