"""The released vLLM's Triton kernels at work, in the code that a V100 runs, against float64.

It needs the environment of `engine: stock` with pytest (tests/stock.sh). Triton makes its code for compute capability
7.0 on every GPU; one that is newer gets it through an assembler that is told of the newer one.
"""

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
triton = pytest.importorskip("triton")
# Bytes that a block can have of a V100's multiprocessor.
SHARED = 96 << 10
# Half the distance of two neighbors, relative: float16 and float32; and half the least float16.
HALF, SINGLE, LEAST = 2.0**-11, 2.0**-24, 2.0**-25
BLOCK, POISON = 16, float("nan")


@pytest.fixture
def kernels(monkeypatch, tmp_path):
    """Those that were launched; each is checked for being a V100's."""
    major, minor = torch.cuda.get_device_capability()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    if (major, minor) != (7, 0):
        found = triton.knobs.nvidia.ptxas.path
        assembler = tmp_path / "ptxas"
        assembler.write_text(
            "#!/bin/sh\nfor argument; do\n    shift\n"
            f'    [ "$argument" = --gpu-name=sm_70 ] && argument=--gpu-name=sm_{major}{minor}\n'
            f'    set -- "$@" "$argument"\ndone\nexec {found} "$@"\n'
        )
        assembler.chmod(0o755)
        monkeypatch.setenv("TRITON_PTXAS_PATH", str(assembler))
        target = triton.backends.compiler.GPUTarget("cuda", 70, 32)
        monkeypatch.setattr(triton.runtime.driver.active, "get_current_target", lambda: target)
    launched, run = [], triton.runtime.JITFunction.run

    def launch(function, *arguments, **options):
        function.device_caches.clear()
        launched.append((function.__name__, run(function, *arguments, **options)))

    monkeypatch.setattr(triton.runtime.JITFunction, "run", launch)
    yield launched
    assert launched
    for name, kernel in launched:
        assert ".target sm_70" in kernel.asm["ptx"], name
        assert "mma." not in kernel.asm["ptx"], name
        assert kernel.metadata.shared <= SHARED, name


def attention(q, k, v, past, scale, window, softcap):
    """Float64 answers [tokens, heads, head] of one sequence, and what they may differ by.

    q: [tokens, heads, head], the last tokens of the sequence; k, v: [past + tokens, key heads, head].
    The kernel rounds products of a query and a key to float32, probabilities and answers to float16.
    """
    q = q.double()
    k, v = (x.double().repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = scale * torch.einsum("qhd,khd->hqk", q, k)
    # Of each score: a product's rounding and the sum's, and what scale and exponent add.
    slack = (q.shape[-1] + 8) * SINGLE * scale * torch.einsum("qhd,khd->hqk", q.abs(), k.abs()) + 16 * SINGLE
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
        # The kernel's tanh is a quotient of exponents, whose rounding the cap multiplies.
        slack = slack + 16 * SINGLE * softcap
    at, to = torch.arange(q.shape[0], device=q.device) + past, torch.arange(k.shape[0], device=q.device)
    seen = (to[None] <= at[:, None]) & (to[None] > at[:, None] - window if window else True)
    scores = scores.masked_fill(~seen, -torch.inf)
    chances = torch.softmax(scores, -1)
    answers = torch.einsum("hqk,khd->qhd", chances, v)
    # Numerator and denominator each move with the scores; a probability is rounded to float16 in the numerator alone.
    worst = slack.masked_fill(~seen, 0).amax(-1).transpose(0, 1)[..., None] + k.shape[0] * SINGLE
    mass = torch.einsum("hqk,khd->qhd", chances, v.abs())
    least = LEAST * torch.einsum("hqk,khd->qhd", seen.double().expand_as(chances), v.abs())
    return answers, (HALF + 2.1 * worst) * mass + least + HALF * answers.abs() + LEAST


@pytest.mark.parametrize("head", [64, 128, 256])
@pytest.mark.parametrize(("heads", "key_heads"), [(8, 8), (32, 8), (32, 1)])
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (100, 0.0), (0, 30.0)], ids=["plain", "window", "softcap"])
@pytest.mark.parametrize("lengths", [[(5, 300), (1, 40), (130, 0)], [(1, 700)], [(1, 3), (1, 511)]], ids=str)
def test_attention_is_that_of_float64(kernels, lengths, window, softcap, heads, key_heads, head):
    """Prompts beside a decoding sequence take the first kernel; few that decode take one in segments, and their sum."""
    from vllm.attention.ops.triton_unified_attention import unified_attention

    def random(*shape):
        return torch.randn(*shape, device="cuda").half()

    tokens, scale = sum(new for new, _ in lengths), head**-0.5
    columns = max(-(-(new + past) // BLOCK) for new, past in lengths)
    free = torch.randperm(columns * len(lengths) + 1, device="cuda", dtype=torch.int32)
    table = free[: columns * len(lengths)].view(len(lengths), columns).contiguous()
    # What no sequence has written holds NaN: the kernel may load it and must not count it.
    cache = torch.full((2, free.numel(), BLOCK, key_heads, head), POISON, device="cuda", dtype=torch.float16)
    q, out = random(tokens, heads, head), torch.full((tokens, heads, head), POISON, device="cuda").half()
    expected, bounds, first = [], [], 0
    for row, (new, past) in enumerate(lengths):
        k, v = random(new + past, key_heads, head), random(new + past, key_heads, head)
        at = torch.arange(new + past, device="cuda")
        cache[0, table[row].long()[at // BLOCK], at % BLOCK] = k
        cache[1, table[row].long()[at // BLOCK], at % BLOCK] = v
        answers, bound = attention(q[first : first + new], k, v, past, scale, window, softcap)
        expected, bounds, first = [*expected, answers], [*bounds, bound], first + new
    # Beyond a sequence the engine's cache holds what others left there, which are numbers.
    cache.nan_to_num_(nan=1e4)
    starts = torch.tensor([0, *torch.tensor([new for new, _ in lengths]).cumsum(0)], dtype=torch.int32, device="cuda")
    one = torch.ones(len(lengths), key_heads, device="cuda")
    unified_attention(
        q=q, k=cache[0], v=cache[1], out=out, cu_seqlens_q=starts, max_seqlen_q=max(new for new, _ in lengths),
        seqused_k=torch.tensor([new + past for new, past in lengths], dtype=torch.int32, device="cuda"),
        max_seqlen_k=max(new + past for new, past in lengths), softmax_scale=scale, causal=True,
        window_size=(window - 1, 0) if window else (-1, -1), block_table=table, softcap=softcap,
        q_descale=None, k_descale=one, v_descale=one,
    )  # fmt: skip
    off = (out.double() - torch.cat(expected)).abs()
    assert (off <= torch.cat(bounds)).all(), (off / torch.cat(bounds)).max()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("tokens", [1, 4, 33, 512])
def test_experts_are_those_of_float64(kernels, tokens, weighted):
    """One product of a layer of experts: each token's rows by the experts that it chose."""
    from vllm.model_executor.layers.fused_moe import fused_moe

    experts, n, k, top = 8, 512, 256, 2
    config = fused_moe.get_default_config(tokens, experts, n, k, top, None)
    block = config["BLOCK_SIZE_M"]
    a, b = torch.randn(tokens, k, device="cuda").half(), torch.randn(experts, n, k, device="cuda").half()
    chosen = torch.rand(tokens, experts, device="cuda").argsort(1)[:, :top]
    weights = torch.rand(tokens, top, device="cuda")
    # Rows of an expert lie together, filled up to whole blocks by a number that no row has.
    rows, owners = [], []
    for expert in range(experts):
        mine = (chosen.flatten() == expert).nonzero().flatten()
        blocks = -(-len(mine) // block)
        rows.append(torch.cat([mine, mine.new_full((blocks * block - len(mine),), tokens * top)]))
        owners += [expert] * blocks
    rows = torch.cat(rows).int()
    c = torch.full((tokens, top, n), POISON, device="cuda").half()
    fused_moe.invoke_fused_moe_kernel(
        A=a, B=b, C=c, A_scale=None, B_scale=None, B_zp=None, topk_weights=weights, sorted_token_ids=rows,
        expert_ids=torch.tensor(owners, dtype=torch.int32, device="cuda"),
        num_tokens_post_padded=torch.tensor([len(rows)], dtype=torch.int32, device="cuda"),
        mul_routed_weight=weighted, top_k=top, config=config, compute_type=triton.language.float16,
        use_fp8_w8a8=False, use_int8_w8a8=False, use_int8_w8a16=False, use_int4_w4a16=False, per_channel_quant=False,
        block_shape=None, B_bias=None,
    )  # fmt: skip
    exact = torch.einsum("tk,tsnk->tsn", a.double(), b.double()[chosen])
    room = torch.einsum("tk,tsnk->tsn", a.double().abs(), b.double().abs()[chosen]) * k * SINGLE
    if weighted:
        exact, room = exact * weights.double()[..., None], room * weights.double()[..., None]
    assert ((c.double() - exact).abs() <= room * (1 + HALF) + (HALF + 2 * SINGLE) * exact.abs() + LEAST).all()
