"""What decides in the config.json of published models: (name, config, what a refusal names; None for a served one)."""

SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "vocab_size", "max_position_embeddings")


def sized(sizes, **more):
    return dict(zip(SIZES, sizes, strict=False), **more)


def of(kind, architecture, sizes=(), **more):
    return dict({"model_type": kind, "architectures": [architecture]}, **sized(sizes, **more))


def llama(*sizes, **more):
    return of("llama", "LlamaForCausalLM", sizes, **more)


def inside(kind, architecture, text, **more):
    """A model that sees or hears, whose language model has a config of its own."""
    return of(kind, architecture, **dict({"text_config": text, "vision_config": {"hidden_size": 1152}}, **more))


def own_code():
    return dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "own.Own")


def weights(bits, **more):
    return dict({"num_bits": bits, "type": "int", "strategy": "group", "group_size": 128, "symmetric": True}, **more)


def packed(form, own, **more):
    group = dict({"targets": ["Linear"], "weights": own}, **more)
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group},
            "ignore": ["lm_head"]}


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}
LONG = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
DEEP_YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
             "mscale": 1.0, "mscale_all_dim": 1.0}
LATENT = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
          "n_shared_experts": 2, "first_k_dense_replace": 1, "moe_layer_freq": 1}
LLAMA_8B = (4096, 14336, 32, 32, 8, 128256, 131072)
QWEN2_7B = (3584, 18944, 28, 28, 4, 152064, 32768)
QWEN3_8B = (4096, 12288, 36, 32, 8, 151936, 40960)
QWEN3_MOE = {"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
MISTRAL_24B = {"model_type": "mistral", "hidden_size": 5120, "intermediate_size": 32768, "num_hidden_layers": 40,
               "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072, "rope_theta": 1e9,
               "sliding_window": None}
GEMMA3_4B = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
             "sliding_window": 1024}
GEMMA3_1B = (1152, 6912, 26, 4, 1, 262144, 32768)
GEMMA_LAYERS = (["sliding_attention"] * 5 + ["full_attention"]) * 5
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
MLX = {"group_size": 64, "bits": 4}
NO_TEXT = "generates no text"


def qwen3(**more):
    return of("qwen3", "Qwen3ForCausalLM", QWEN3_8B, head_dim=128, **more)


def quantized(values):
    return of("qwen2", "Qwen2ForCausalLM", QWEN2_7B, rope_theta=1e6, quantization_config=values)


PUBLISHED = [
    ("Llama 2 7B", llama(4096, 11008, 32, 32, 32, 32000, 4096), None),
    ("Llama 3.1 8B", llama(*LLAMA_8B, rope_theta=500000.0, rope_scaling=LLAMA3), None),
    ("Llama 3.2 1B", llama(2048, 8192, 16, 32, 8, 128256, 131072, head_dim=64, tie_word_embeddings=True,
                           rope_theta=500000.0, rope_scaling=dict(LLAMA3, factor=32.0)), None),
    ("Llama 3.2 11B Vision", inside("mllama", "MllamaForConditionalGeneration", dict(
        llama(4096, 14336, 40, 32, 8, 128256, 131072), model_type="mllama_text_model")), "mllama: cross-attention"),
    ("Llama 4 Scout", inside("llama4", "Llama4ForConditionalGeneration", {"model_type": "llama4_text"}),
     "llama4: attention in chunks"),
    ("SmolLM2 1.7B", llama(2048, 8192, 24, 32, 32, 49152, 8192, rope_theta=130000), None),
    ("SmolLM3 3B", of("smollm3", "SmolLM3ForCausalLM", (2048, 11008, 36, 16, 4, 128256, 65536),
                      no_rope_layers=[1, 1, 1, 0] * 9), "model_type smollm3"),
    ("Mistral 7B v0.1", of("mistral", "MistralForCausalLM", (4096, 14336, 32, 32, 8, 32000, 32768),
                           sliding_window=4096), None),
    ("Mistral Nemo 12B", of("mistral", "MistralForCausalLM", (5120, 14336, 40, 32, 8, 131072, 131072),
                            head_dim=128, sliding_window=None), None),
    ("Mistral Small 3.1 24B", inside("mistral3", "Mistral3ForConditionalGeneration", MISTRAL_24B,
                                     vision_config={"model_type": "pixtral", "hidden_size": 1024}), None),
    ("Ministral 3 8B", inside("mistral3", "Mistral3ForConditionalGeneration", dict(MISTRAL_24B, **{
        "model_type": "ministral3", "rope_parameters": {"rope_type": "yarn", "factor": 16.0, "rope_theta": 1e6,
                                                        "original_max_position_embeddings": 16384}})),
     "text_config.model_type ministral3"),
    ("Mixtral 8x7B", of("mixtral", "MixtralForCausalLM", (4096, 14336, 32, 32, 8, 32000, 32768),
                        num_local_experts=8, num_experts_per_tok=2, sliding_window=None), None),
    ("Qwen2.5 7B", of("qwen2", "Qwen2ForCausalLM", QWEN2_7B, rope_theta=1e6, sliding_window=131072,
                      max_window_layers=28, use_sliding_window=False), None),
    ("Qwen1.5 MoE A2.7B", of("qwen2_moe", "Qwen2MoeForCausalLM", (2048, 5632, 24, 16, 16, 151936, 8192),
                             num_experts=60, num_experts_per_tok=4, moe_intermediate_size=1408,
                             shared_expert_intermediate_size=5632), None),
    ("Qwen2.5 VL 7B", of("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", QWEN2_7B, vision_config={
        "hidden_size": 1280, "depth": 32}, rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]}),
     "Qwen2_5_VLForConditionalGeneration, whose code"),
    ("Qwen2.5 7B 1M", of("qwen2", "Qwen2ForCausalLM", (3584, 18944, 28, 28, 4, 152064, 1010000), rope_theta=1e7,
                         dual_chunk_attention_config={"chunk_size": 262144}), "dual_chunk_attention_config"),
    ("Qwen3 8B", qwen3(rope_theta=1e6), None),
    ("Qwen3 8B of transformers 5", qwen3(rope_parameters={"rope_type": "default", "rope_theta": 1e6}, dtype="bfloat16",
                                         layer_types=["full_attention"] * 36), None),
    ("Qwen3 30B A3B", of("qwen3_moe", "Qwen3MoeForCausalLM", (2048, 6144, 48, 32, 4, 151936, 40960), rope_theta=1e6,
                         **QWEN3_MOE), None),
    ("Qwen3 VL 8B", inside("qwen3_vl", "Qwen3VLForConditionalGeneration", {"model_type": "qwen3_vl_text"}),
     "model_type qwen3_vl"),
    ("Qwen3 Next 80B A3B", of("qwen3_next", "Qwen3NextForCausalLM", (2048, 5120, 48, 16, 2, 151936, 262144)),
     "model_type qwen3_next"),
    ("Qwen3.5 27B", inside("qwen3_5", "Qwen3_5ForConditionalGeneration", {"model_type": "qwen3_5_text"}),
     "model_type qwen3_5"),
    ("Gemma 2B", of("gemma", "GemmaForCausalLM", (2048, 16384, 18, 8, 1, 256000, 8192), head_dim=256), None),
    ("Gemma 2 9B", of("gemma2", "Gemma2ForCausalLM", (3584, 14336, 42, 16, 8, 256000, 8192), head_dim=256,
                      sliding_window=4096), None),
    ("Gemma 3 1B", of("gemma3_text", "Gemma3ForCausalLM", GEMMA3_1B, head_dim=256, rope_theta=1e6,
                      rope_local_base_freq=10000.0, sliding_window=512, sliding_window_pattern=6), None),
    ("Gemma 3 1B of transformers 5", of(
        "gemma3_text", "Gemma3ForCausalLM", GEMMA3_1B, head_dim=256, sliding_window=512,
        layer_types=[*GEMMA_LAYERS[:24], "sliding_attention", "sliding_attention"], rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}), None),
    ("Gemma 3 4B", inside("gemma3", "Gemma3ForConditionalGeneration", dict(
        GEMMA3_4B, rope_scaling={"rope_type": "linear", "factor": 8.0})), None),
    ("Gemma 3n E4B", inside("gemma3n", "Gemma3nForConditionalGeneration", {"model_type": "gemma3n_text"}),
     "gemma3n: a KV cache that layers share"),
    ("Phi 3 mini 4k", of("phi3", "Phi3ForCausalLM", (3072, 8192, 32, 32, 32, 32064, 4096), sliding_window=2047,
                         auto_map=own_code()), None),
    ("Phi 3.5 mini", of("phi3", "Phi3ForCausalLM", (3072, 8192, 32, 32, 32, 32064, 131072), auto_map=own_code(),
                        original_max_position_embeddings=4096, rope_scaling=dict(LONG, type="longrope")), None),
    ("Phi 3 small 8k", of("phi3small", "Phi3SmallForCausalLM", (4096, 14336, 32, 32, 8, 100352, 8192),
                          auto_map=own_code()), "phi3small: block-sparse"),
    ("Phi 3.5 MoE", of("phimoe", "PhiMoEForCausalLM", (4096, 6400, 32, 32, 8, 32064, 131072), auto_map=own_code(),
                       num_local_experts=16, num_experts_per_tok=2, original_max_position_embeddings=4096,
                       attention_bias=True, lm_head_bias=True, rope_scaling={
                           "type": "longrope", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64,
                           "short_mscale": 1.2, "long_mscale": 1.2, "original_max_position_embeddings": 4096}), None),
    ("Phi 4", of("phi3", "Phi3ForCausalLM", (5120, 17920, 40, 40, 10, 100352, 16384), rope_theta=250000), None),
    ("Phi 4 mini", of("phi3", "Phi3ForCausalLM", (3072, 8192, 32, 24, 8, 200064, 131072), tie_word_embeddings=True,
                      partial_rotary_factor=0.75, original_max_position_embeddings=4096,
                      rope_scaling=dict(LONG, type="longrope")), None),
    ("Phi 4 multimodal", of("phi4mm", "Phi4MMForCausalLM", (3072, 8192, 32, 24, 8, 200064, 131072),
                            auto_map=own_code()), "phi4mm, which comes with code of its own"),
    ("OLMo 7B", of("olmo", "OlmoForCausalLM", (4096, 11008, 32, 32, 32, 50304, 2048)), None),
    ("OLMoE 7B", of("olmoe", "OlmoeForCausalLM", (2048, 1024, 16, 16, 16, 50304, 4096), num_experts=64,
                    num_experts_per_tok=8, rms_norm_eps=1e-5, clip_qkv=None, norm_topk_prob=False), None),
    ("StableLM 2 12B", of("stablelm", "StableLmForCausalLM", (5120, 13824, 40, 32, 8, 100352, 4096), qk_layernorm=True,
                          use_parallel_residual=True, partial_rotary_factor=0.25), "qk_layernorm True"),
    ("ReluLLaMA 7B", llama(4096, 11008, 32, 32, 32, 32000, 4096, hidden_act="relu"), "hidden_act relu"),
    ("OLMo 2 7B", of("olmo2", "Olmo2ForCausalLM", (4096, 11008, 32, 32, 32, 100352, 4096), rope_theta=500000), None),
    ("OLMo 3 7B", of("olmo3", "Olmo3ForCausalLM", (4096, 11008, 32, 32, 32, 100278, 65536), sliding_window=4096,
                     layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 8), "model_type olmo3"),
    ("Granite 3.3 8B", of("granite", "GraniteForCausalLM", (4096, 12800, 40, 32, 8, 49159, 131072), rope_theta=1e7,
                          attention_multiplier=0.0078125, embedding_multiplier=12.0, logits_scaling=16.0,
                          residual_multiplier=0.22, tie_word_embeddings=True), None),
    ("Granite 3.1 3B A800M", of("granitemoe", "GraniteMoeForCausalLM", (1536, 512, 32, 24, 8, 49155, 131072),
                                num_local_experts=40, num_experts_per_tok=8, tie_word_embeddings=True), None),
    ("Granite 4 H Tiny", of("granitemoehybrid", "GraniteMoeHybridForCausalLM", (1536, 512, 40, 12, 4, 100352, 131072),
                            layer_types=["mamba"] * 5 + ["attention"] + ["mamba"] * 34), "granitemoehybrid"),
    ("GLM 4 9B 0414", of("glm4", "Glm4ForCausalLM", (4096, 13696, 40, 32, 2, 151552, 32768), head_dim=128,
                         partial_rotary_factor=0.5, attention_bias=True), None),
    ("GLM 4.5 Air", of("glm4_moe", "Glm4MoeForCausalLM", (4096, 10944, 46, 96, 8, 151552, 131072)),
     "model_type glm4_moe"),
    ("DeepSeek V2 Lite", of("deepseek_v2", "DeepseekV2ForCausalLM", (2048, 10944, 27, 16, 16, 102400, 163840),
                            auto_map=own_code(), n_routed_experts=64, num_experts_per_tok=6, moe_intermediate_size=1408,
                            q_lora_rank=None, topk_method="greedy", rope_scaling=DEEP_YARN, **LATENT), None),
    ("DeepSeek V3", of("deepseek_v3", "DeepseekV3ForCausalLM", (7168, 18432, 61, 128, 128, 129280, 163840),
                       auto_map=own_code(), q_lora_rank=1536, n_routed_experts=256, rope_scaling=DEEP_YARN,
                       quantization_config=FP8, **LATENT), "quantized with fp8"),
    ("DeepSeek V3.2", of("deepseek_v32", "DeepseekV32ForCausalLM", (7168, 18432, 61, 128, 128, 129280, 163840)),
     "model_type deepseek_v32"),
    ("Moonlight 16B A3B", of("deepseek_v3", "DeepseekV3ForCausalLM", (2048, 11264, 27, 16, 16, 163840, 8192),
                             auto_map=own_code(), q_lora_rank=None, n_routed_experts=64, num_experts_per_tok=6,
                             moe_intermediate_size=1408, topk_method="noaux_tc", scoring_func="sigmoid", **LATENT),
     None),
    ("R1 Distill Qwen 7B", of("qwen2", "Qwen2ForCausalLM", (3584, 18944, 28, 28, 4, 152064, 131072), rope_theta=1e4,
                              sliding_window=4096, use_sliding_window=False, use_mrope=False), None),
    ("R1 0528 Qwen3 8B", of("qwen3", "Qwen3ForCausalLM", (4096, 12288, 36, 32, 8, 151936, 131072), head_dim=128,
                            rope_theta=1e6, rope_scaling={
                                "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
                                "attn_factor": 0.878}), None),
    ("StarCoder2 7B", of("starcoder2", "Starcoder2ForCausalLM", (4608, 18432, 32, 36, 4, 49152, 16384),
                         sliding_window=4096, use_bias=True), None),
    ("Falcon 7B", of("falcon", "FalconForCausalLM", vocab_size=65024, hidden_size=4544, num_hidden_layers=32,
                     num_attention_heads=71, multi_query=True, auto_map=own_code()), None),
    ("Falcon H1 7B", of("falcon_h1", "FalconH1ForCausalLM", (3072, 12288, 44, 12, 2, 130048, 262144)),
     "falcon_h1: state-space"),
    ("Command R 35B", of("cohere", "CohereForCausalLM", (8192, 22528, 40, 64, 64, 256000, 8192),
                         model_max_length=131072, logit_scale=0.0625), None),
    ("Command R7B", of("cohere2", "Cohere2ForCausalLM", (4096, 14336, 32, 32, 8, 256000, 132096), head_dim=128,
                       sliding_window=4096, sliding_window_pattern=4, rope_theta=50000, logit_scale=0.25), None),
    ("StableLM 2 1.6B", of("stablelm", "StableLmForCausalLM", (2048, 5632, 24, 32, 32, 100352, 4096),
                           partial_rotary_factor=0.25, use_qkv_bias=True), None),
    ("InternLM 2.5 7B", of("internlm2", "InternLM2ForCausalLM", (4096, 14336, 32, 32, 8, 92544, 32768),
                           auto_map=own_code()), "internlm2, which comes with code of its own"),
    ("InternVL 3 8B", of("internvl_chat", "InternVLChatModel", llm_config={"model_type": "qwen2"},
                         auto_map=own_code()), "internvl_chat, which comes with code of its own"),
    ("EXAONE 3.5 7.8B", of("exaone", "ExaoneForCausalLM", (4096, 14336, 32, 32, 8, 102400, 32768), num_layers=32,
                           auto_map=own_code(), rope_theta=1e6), None),
    ("Nemotron Mini 4B", of("nemotron", "NemotronForCausalLM", (3072, 9216, 32, 24, 8, 256000, 4096),
                            partial_rotary_factor=0.5, hidden_act="relu2"), None),
    ("GPT-OSS 20B", of("gpt_oss", "GptOssForCausalLM", (2880, 2880, 24, 64, 8, 201088, 131072), num_local_experts=32,
                       quantization_config={"quant_method": "mxfp4"}), "gpt_oss"),
    ("GPT-OSS 20B in bfloat16", of("gpt_oss", "GptOssForCausalLM", (2880, 2880, 24, 64, 8, 201088, 131072)),
     "model_type gpt_oss"),
    ("Mamba 2.8B", of("mamba", "MambaForCausalLM", hidden_size=2560, num_hidden_layers=64, vocab_size=50280),
     "mamba: state-space"),
    ("Jamba 1.5 Mini", of("jamba", "JambaForCausalLM", (4096, 14336, 32, 32, 8, 65536, 262144)), "jamba: state-space"),
    ("LFM2 1.2B", of("lfm2", "Lfm2ForCausalLM", (2048, 12288, 16, 32, 8, 65536, 128000)), "model_type lfm2"),
    ("ERNIE 4.5 0.3B", of("ernie4_5", "Ernie4_5ForCausalLM", (1024, 3072, 18, 16, 2, 103424, 131072)),
     "model_type ernie4_5"),
    ("Kimi K2", of("kimi_k2", "DeepseekV3ForCausalLM", (7168, 18432, 61, 64, 64, 163840, 131072),
                   auto_map=own_code()), "kimi_k2, which comes with code of its own"),
    ("Qwen3 Embedding 8B", qwen3(rope_theta=1e6), None),
    ("E5 Mistral 7B", of("mistral", "MistralModel", (4096, 14336, 32, 32, 8, 32000, 32768)), NO_TEXT),
    ("BGE M3", of("xlm-roberta", "XLMRobertaModel", (1024, 4096, 24, 16, 16, 250002, 8194)), NO_TEXT),
    ("BGE reranker v2 M3", of("xlm-roberta", "XLMRobertaForSequenceClassification",
                              (1024, 4096, 24, 16, 16, 250002, 8194)), NO_TEXT),
    ("T5 base", of("t5", "T5ForConditionalGeneration", d_model=768, is_encoder_decoder=True, vocab_size=32128),
     "encoder-decoder t5"),
    ("Qwen2.5 7B AWQ", quantized(AWQ), None),
    ("Qwen2.5 7B GPTQ Int4", quantized(GPTQ), None),
    ("Qwen2.5 7B GPTQ Int8", quantized(dict(GPTQ, bits=8)), None),
    ("Qwen2.5 7B w4a16", quantized(packed("pack-quantized", weights(4))), None),
    ("Qwen2.5 7B w8a8", quantized(packed(
        "int-quantized", weights(8, strategy="channel", group_size=None), input_activations={"num_bits": 8})),
     "format int-quantized"),
    ("Qwen2.5 7B FP8 dynamic", quantized(packed(
        "float-quantized", weights(8, type="float", strategy="channel", group_size=None))), "format float-quantized"),
    ("Qwen2.5 7B bnb 4bit", quantized({"quant_method": "bitsandbytes", "load_in_4bit": True,
                                       "bnb_4bit_quant_type": "nf4"}), "quantized with bitsandbytes"),
    ("Qwen2.5 7B NVFP4", quantized({"quant_method": "modelopt", "quant_algo": "NVFP4"}), "quantized with modelopt"),
    ("Qwen2.5 7B AutoRound", quantized({"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True}),
     "quantized with auto-round"),
    ("Qwen3 8B FP8", qwen3(quantization_config=FP8), "quantized with fp8"),
    ("Qwen3 30B A3B GPTQ Int4", of("qwen3_moe", "Qwen3MoeForCausalLM", (2048, 6144, 48, 32, 4, 151936, 40960),
                                   quantization_config=GPTQ, **QWEN3_MOE), None),
    ("Llama 3.1 8B of transformers 5", llama(*LLAMA_8B, rope_parameters=dict(LLAMA3, rope_theta=500000.0)), None),
    ("Phi 4 mini of transformers 5", of("phi3", "Phi3ForCausalLM", (3072, 8192, 32, 24, 8, 200064, 131072),
                                        original_max_position_embeddings=4096, rope_parameters=dict(
                                            LONG, rope_type="longrope", rope_theta=10000.0, partial_rotary_factor=0.75,
                                            original_max_position_embeddings=4096)), None),
    ("Gemma 3 4B of transformers 5", inside("gemma3", "Gemma3ForConditionalGeneration", dict(
        GEMMA3_4B, layer_types=(GEMMA_LAYERS * 2)[:34], rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}})), None),
    ("Qwen2.5 VL 7B of transformers 5", inside("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", sized(
        QWEN2_7B, model_type="qwen2_5_vl_text", rope_parameters={
            "rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]})),
     "text_config.model_type qwen2_5_vl_text"),
    ("Llava 1.5 7B", inside("llava", "LlavaForConditionalGeneration", {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32064,
        "max_position_embeddings": 4096}), None),
    # As tools of training, merging and quantization leave them.
    ("Llama 3.1 8B saved by unsloth", llama(*LLAMA_8B, dtype="bfloat16", unsloth_version="2026.1.1", unsloth_fixed=True,
                                            tie_word_embeddings=False, pad_token_id=128004,
                                            rope_parameters=dict(LLAMA3, rope_theta=500000.0)), None),
    ("Qwen2.5 7B saved by axolotl", of("qwen2", "Qwen2ForCausalLM", QWEN2_7B,
                                       layer_types=["full_attention"] * 28, max_window_layers=28, sliding_window=None,
                                       use_sliding_window=False, dtype="bfloat16", rope_parameters={
                                           "rope_type": "default", "rope_theta": 1e6}), None),
    ("Qwen2.5 7B with windows above layer 21", of(
        "qwen2", "Qwen2ForCausalLM", QWEN2_7B, max_window_layers=21, sliding_window=4096,
        use_sliding_window=True), "max_window_layers 21"),
    ("Qwen2.5 7B with windows above all layers", of(
        "qwen2", "Qwen2ForCausalLM", QWEN2_7B, max_window_layers=28, sliding_window=4096,
        use_sliding_window=True), None),
    ("Llama 3 8B with dynamic scaling", llama(*LLAMA_8B[:6], 8192, rope_scaling={"type": "dynamic", "factor": 4.0}),
     None),
    ("Llama 3 8B with an empty scaling", llama(*LLAMA_8B[:6], 8192, rope_scaling={}), None),
    ("StarCoder2 7B with YaRN", of("starcoder2", "Starcoder2ForCausalLM", (4608, 18432, 32, 36, 4, 49152, 16384),
                                   rope_scaling={"rope_type": "yarn", "factor": 4.0}), "rope_scaling of the type yarn"),
    ("Qwen2.5 7B of GPTQModel 5", quantized(dict(GPTQ, format="gptq", pack_dtype="int32", checkpoint_format="gptq",
                                                 act_group_aware=True, meta={"quantizer": ["gptqmodel:5.0.0"]})), None),
    ("Qwen2.5 7B of GPTQModel in GPTQ v2", quantized(dict(GPTQ, format="gptq_v2")), None),
    ("Qwen2.5 7B of GPTQModel in int16", quantized(dict(GPTQ, pack_dtype="int16")), "packed in int16"),
    ("Qwen2.5 7B AWQ without a list", quantized(dict(AWQ, modules_to_not_convert=None, version="GEMM")), None),
    ("Qwen2.5 7B AWQ for gemv", quantized(dict(AWQ, format="gemv", version=None)), "version gemv"),
    ("Qwen2.5 7B w4a16 with rotations", quantized(dict(
        packed("pack-quantized", weights(4)), transform_config={"config_groups": {"R1": {"type": "hadamard"}}})),
     "transform_config"),
    ("Qwen2.5 7B AutoRound in GPTQ's packing", quantized({
        "quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4, "group_size": 128,
        "sym": True}), "quantized with auto-round"),
    ("Qwen2.5 7B AWQ of GPTQModel 5", quantized(dict(AWQ, checkpoint_format="gemm", method="awq", lm_head=False,
                                                     pack_dtype="int32", dynamic=None, desc_act=False)), None),
    ("Qwen2.5 7B AWQ of GPTQModel for gemv", quantized(dict(AWQ, checkpoint_format="gemv_fast")), "version gemv_fast"),
    ("Qwen2.5 7B AWQ of GPTQModel by layers", quantized(dict(AWQ, dynamic={"-:.*down_proj.*": {}})), "(dynamic)"),
    ("Qwen2.5 7B AWQ with its head", quantized(dict(AWQ, lm_head=True)), "quantized head"),
    ("Qwen2.5 7B AWQ in int64", quantized(dict(AWQ, pack_dtype="int64")), "packed in int64"),
    ("Qwen2.5 7B AutoRound in GPTQ's format", quantized(dict(
        GPTQ, autoround_version="0.9.1", extra_config={"model.layers.0.mlp.down_proj": {"bits": 8}})),
     "model.layers.0.mlp.down_proj (extra_config)"),
    ("Qwen2.5 7B AutoRound, all layers alike", quantized(dict(
        GPTQ, autoround_version="0.9.1", extra_config={"model.layers.0.mlp.down_proj": {"bits": 4}})), None),
    ("Qwen3 8B of MLX", qwen3(quantization=MLX), "quantized by MLX"),
    ("Qwen3 8B of MLX with both keys", qwen3(quantization=MLX, quantization_config=MLX), "an unnamed method"),
    ("EmbeddingGemma as a generator", of("gemma3_text", "Gemma3ForCausalLM", GEMMA3_1B, head_dim=256,
                                         use_bidirectional_attention=True), "attention to later tokens"),
    ("Gemma 3 4B, bidirectional for images", inside("gemma3", "Gemma3ForConditionalGeneration", dict(
        GEMMA3_4B, use_bidirectional_attention="vision")), None),
    ("Llama 3.1 8B made an encoder", llama(*LLAMA_8B, is_causal=False), "attention to later tokens"),
    ("Qwen2.5 7B with YaRN and a factor of attention", of(
        "qwen2", "Qwen2ForCausalLM", QWEN2_7B, rope_scaling={
            "rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5}), "rope_scaling.attention_factor 1.5"),
    ("Qwen3 30B A3B of transformers 5", of("qwen3_moe", "Qwen3MoeForCausalLM", (
        2048, 6144, 48, 32, 4, 151936, 40960), mlp_layer_types=["sparse"] * 48, dtype="bfloat16", **QWEN3_MOE), None),
]
