"""Multi-head latent attention, with keys and values of every head: answers of models like DeepSeek V2 and V3."""

import json

import pytest
import tiny_models
import torch
from conftest import generate
from safetensors.torch import load_file, save_file
from serve_once import serve
from tiny_models import CONTEXT, SHAPE, assert_same
from transformers.models.deepseek_v3 import modeling_deepseek_v3

SIZES = {
    "num_key_value_heads": 4, "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 24,
    "moe_intermediate_size": 64, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
    "n_shared_experts": 2, "first_k_dense_replace": 1, "routed_scaling_factor": 2.5,
}  # fmt: skip
TOKENS = 10
YARN = {"type": "yarn", "factor": 4, "original_max_position_embeddings": CONTEXT // 4, "beta_fast": 32, "beta_slow": 1,
        "mscale": 0.7, "mscale_all_dim": 0.7}
# Name of the type -> what differs from SIZES.
KINDS = {
    "deepseek_v2": {"q_lora_rank": SHAPE["hidden_size"], "norm_topk_prob": False, "topk_method": "group_limited_greedy",
                    "scoring_func": "softmax", "rope_scaling": YARN, "moe_layer_freq": 1},
    # As its own class says, without the keys that only published configs have.
    "deepseek_v3": {"q_lora_rank": 48, "norm_topk_prob": True},
}


def choose_by_best_group(router, hidden):
    """V2's router, which this transformers lacks: experts of the groups with the best expert, by softmax."""
    scores = torch.softmax(hidden.view(-1, router.config.hidden_size) @ router.weight.T, dim=-1)
    groups = scores.unflatten(-1, (router.n_group, -1))
    best = groups.amax(-1).topk(router.topk_group, dim=-1).indices
    allowed = torch.zeros_like(groups, dtype=torch.bool)
    allowed[torch.arange(len(scores))[:, None], best] = True
    experts = (groups * allowed).flatten(1).topk(router.top_k, dim=-1).indices
    return experts, scores.gather(1, experts) * router.routed_scaling_factor


def after(monkeypatch, kind, name, change):
    """Let a method of a class of transformers be followed by `change`, which gets the object and what came out."""
    plain = getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda self, *given, **named: change(self, plain(self, *given, **named)))


@pytest.fixture
def latent(tmp_path, seed, monkeypatch):
    """Name of KINDS to a function that makes a tiny model."""
    router, attention = modeling_deepseek_v3.DeepseekV3TopkRouter, modeling_deepseek_v3.DeepseekV3Attention

    def make(kind):
        monkeypatch.setitem(tiny_models.FAMILIES, kind, ("deepseek_v3", {**SIZES, **KINDS[kind]}))
        return tiny_models.make(kind, tmp_path, seed, lengths=(1, 20, 70), tokens=TOKENS)

    def like_v3():
        def biased(self, _):
            self.e_score_correction_bias.normal_(std=0.1)

        after(monkeypatch, router, "__init__", biased)
        # The reference is float64, but for this router.
        after(monkeypatch, router, "forward", lambda self, chosen: (chosen[0], chosen[1].to(self.weight.dtype)))
        return make("deepseek_v3")

    def like_v2():
        """Queries of one matrix: the first of V3's two is left out, and the second one renamed."""

        def one_matrix(self, _):
            self.q_a_proj = self.q_a_layernorm = torch.nn.Identity()

        after(monkeypatch, attention, "__init__", one_matrix)
        after(monkeypatch, router, "__init__", lambda self, _: delattr(self, "e_score_correction_bias"))
        monkeypatch.setattr(router, "forward", choose_by_best_group)
        made = make("deepseek_v2")
        path = tmp_path / "model.safetensors"
        tensors = {name.replace("q_b_proj", "q_proj"): tensor for name, tensor in load_file(path).items()}
        save_file(tensors, path, {"format": "pt"})
        said = json.loads((tmp_path / "config.json").read_text())
        said.update(model_type="deepseek_v2", architectures=["DeepseekV2ForCausalLM"], q_lora_rank=None)
        (tmp_path / "config.json").write_text(json.dumps(said))
        return made

    return {"deepseek_v2": like_v2, "deepseek_v3": like_v3}


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_the_models_with_one_rank_and_two(latent, engine, kind):
    model = latent[kind]()
    llm = engine(model)
    assert_same(model, generate(llm, model.prompts, TOKENS))
    done = serve(model, tensor_parallel_size=2)
    assert done.ids, done.printed
    assert_same(model, done.ids)
