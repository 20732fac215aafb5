"""Configs of well-known models, as their authors published them, and the numbers of parameters on their cards."""


def llama(hidden, inner, layers, heads, kv_heads, vocabulary, positions, **more):
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocabulary, "max_position_embeddings": positions,
        "tie_word_embeddings": False, **more,
    }


LLAMA_7B = llama(4096, 11008, 32, 32, 32, 32000, 4096)
LLAMA_13B = llama(5120, 13824, 40, 40, 40, 32000, 4096)
LLAMA_8B = llama(4096, 14336, 32, 32, 8, 128256, 131072, rope_scaling={
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0})
QWEN2_0_5B = llama(896, 4864, 24, 14, 2, 151936, 32768, model_type="qwen2", architectures=["Qwen2ForCausalLM"],
                   tie_word_embeddings=True)
QWEN2_7B = llama(3584, 18944, 28, 28, 4, 152064, 131072, model_type="qwen2", architectures=["Qwen2ForCausalLM"],
                 sliding_window=131072, use_sliding_window=False)
# 15.7 billion parameters, of which 2.4 are read for a token.
DEEPSEEK_V2_LITE = {
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "hidden_size": 2048,
    "num_hidden_layers": 27, "num_attention_heads": 16, "num_key_value_heads": 16, "intermediate_size": 10944,
    "vocab_size": 102400,
    "kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "n_routed_experts": 64, "n_shared_experts": 2, "num_experts_per_tok": 6, "moe_intermediate_size": 1408,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_group": 1, "topk_group": 1, "topk_method": "greedy",
    "max_position_embeddings": 163840, "tie_word_embeddings": False,
}
MIXTRAL = llama(4096, 14336, 32, 32, 8, 32000, 32768, model_type="mixtral", architectures=["MixtralForCausalLM"],
                num_local_experts=8, num_experts_per_tok=2, sliding_window=None)
QWEN3_30B = llama(2048, 6144, 48, 32, 4, 151936, 40960, model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"],
                  head_dim=128, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768)
GEMMA2_9B = llama(3584, 14336, 42, 16, 8, 256000, 8192, model_type="gemma2", architectures=["Gemma2ForCausalLM"],
                  head_dim=256, sliding_window=4096)
del GEMMA2_9B["tie_word_embeddings"]
PHI3_MINI = llama(3072, 8192, 32, 32, 32, 32064, 4096, model_type="phi3", architectures=["Phi3ForCausalLM"])
GPT2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12,
        "n_positions": 1024, "vocab_size": 50257}
BLOOM_7B = {"architectures": ["BloomForCausalLM"], "model_type": "bloom", "hidden_size": 4096, "n_layer": 30,
            "n_head": 32, "vocab_size": 250880}
FALCON_7B = {"architectures": ["FalconForCausalLM"], "model_type": "falcon", "hidden_size": 4544,
             "num_hidden_layers": 32, "num_attention_heads": 71, "multi_query": True, "parallel_attn": True,
             "new_decoder_architecture": False, "bias": False, "vocab_size": 65024}
NEOX_20B = {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": 6144,
            "intermediate_size": 24576, "num_hidden_layers": 44, "num_attention_heads": 64, "vocab_size": 50432,
            "max_position_embeddings": 2048, "tie_word_embeddings": False, "rotary_pct": 0.25}
GPTJ_6B = {"architectures": ["GPTJForCausalLM"], "model_type": "gptj", "n_embd": 4096, "n_layer": 28, "n_head": 16,
           "n_positions": 2048, "rotary_dim": 64, "vocab_size": 50400, "tie_word_embeddings": False, "n_inner": None}
# Of the language model only what differs from its class.
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "torch_dtype": "bfloat16",
    "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
                    "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                    "sliding_window": 1024},
    "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152, "num_hidden_layers": 27},
}
PARAMETERS = {
    "llama-2-7b": (LLAMA_7B, 6738415616),
    "llama-2-13b": (LLAMA_13B, 13015864320),
    "llama-3.1-8b": (LLAMA_8B, 8030261248),
    "qwen2.5-0.5b": (QWEN2_0_5B, 494032768),
    "qwen2.5-7b": (QWEN2_7B, 7615616512),
    "mixtral-8x7b": (MIXTRAL, 46702792704),
    "qwen3-30b-a3b": (QWEN3_30B, 30532122624),
    "gemma-2-9b": (GEMMA2_9B, 9241705984),
    "phi-3-mini": (PHI3_MINI, 3821079552),
    "gpt2": (GPT2, 124439808),
    "bloom-7b1": (BLOOM_7B, 7069016064),
    "falcon-7b": (FALCON_7B, 6921720704),
    "gpt-neox-20b": (NEOX_20B, 20554567680),
    "gpt-j-6b": (GPTJ_6B, 6050882784),
}
