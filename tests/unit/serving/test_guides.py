"""What the API keeps of the compiler's answers, with a compiler that does what it is told."""

import asyncio
import json

import pytest
from vllm_kepler.api import guides
from vllm_kepler.exact_tokenizer import exact
from vllm_serving.errors import Rejected

ANSWER = {"error": "", "text": None, "seconds": 0.1, "bytes": 1 << 20}


class Compiler(guides.Guides):
    """Counts what it is asked."""

    def __init__(self, answer=ANSWER):
        super().__init__("{}", 0)
        self.answer, self.asked = answer, 0

    async def ask(self, line):
        self.asked += 1
        await asyncio.sleep(0.01)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize("text", [None, "start: a", "x" * guides.KEPT_CHARACTERS])
def test_requests_with_one_guide_compile_it_once(text):
    async def ask():
        compiler = Compiler({**ANSWER, "text": text})
        found = [await asyncio.gather(*[compiler.check({"grammar": "a"}, 1) for _ in range(9)]) for _ in range(2)]
        return found, compiler.asked

    assert asyncio.run(ask()) == ([[text] * 9] * 2, 1)


@pytest.mark.parametrize("answer", [Rejected(503, "gone"), {**ANSWER, "text": "x" * (guides.KEPT_CHARACTERS + 1)}])
def test_answers_that_are_large_or_none_are_not_kept(answer):
    async def ask():
        compiler = Compiler(answer)
        for _ in range(2):
            await asyncio.gather(*[compiler.check({"grammar": "a"}, 1) for _ in range(3)], return_exceptions=True)
        return compiler.asked, len(compiler.kept)

    assert asyncio.run(ask()) == (2, 0)


def test_a_client_that_leaves_takes_no_answer_from_the_others():
    async def ask():
        compiler = Compiler()
        leaving, staying = (asyncio.ensure_future(compiler.check({"grammar": "a"}, 1)) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        return await staying, compiler.asked

    assert asyncio.run(ask()) == (None, 1)


def test_only_so_many_answers_are_kept():
    async def ask():
        compiler = Compiler()
        await asyncio.gather(*[compiler.check({"grammar": str(one)}, 1) for one in range(guides.KEPT + 5)])
        return compiler.asked, len(compiler.kept)

    assert asyncio.run(ask()) == (guides.KEPT + 5, guides.KEPT)


@pytest.mark.parametrize(("sequences", "refused"), [(1, False), (40, False), (41, True)])
def test_a_guide_counts_for_each_sequence(sequences, refused):
    async def ask():
        await Compiler().check({"grammar": "a"}, sequences)

    if refused:
        with pytest.raises(Rejected, match=f"each of the {sequences} sequences"):
            asyncio.run(ask())
    else:
        asyncio.run(ask())


SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
START = {"type": "Prepend", "prepend": "\u2581"}


@pytest.mark.parametrize(("normalizer", "kept"), [
    (None, None), ({"type": "NFC"}, None), (SPACES, SPACES), ({"type": "Lowercase"}, None),
    ({"type": "Sequence", "normalizers": [START, SPACES]}, {"type": "Sequence", "normalizers": [START, SPACES]}),
    ({"type": "Sequence", "normalizers": [{"type": "NFKC"}, SPACES]}, {"type": "Sequence", "normalizers": [SPACES]}),
    ({"type": "Sequence", "normalizers": [{"type": "Strip"}]}, None),
    ({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}, None),
])
def test_tokenizer_of_guides_changes_no_text(normalizer, kept):
    whole = {"normalizer": normalizer, "model": {"vocab": {"\u00e9": 0}}}
    assert json.loads(exact(json.dumps(whole))) == {**whole, "normalizer": kept}
