"""Names that vLLM 0.9.2 and transformers 4.51.3 know.

Written by vllm_src/engine_models.py: do not edit.
"""

# Architectures that generate text.
GENERATORS = frozenset((
    "AquilaForCausalLM AquilaModel AriaForConditionalGeneration AyaVisionForConditionalGeneration "
    "BaiChuanForCausalLM BaichuanForCausalLM BambaForCausalLM BartForConditionalGeneration BartModel "
    "Blip2ForConditionalGeneration BloomForCausalLM ChameleonForConditionalGeneration "
    "ChatGLMForConditionalGeneration ChatGLMModel Cohere2ForCausalLM CohereForCausalLM DbrxForCausalLM "
    "DeciLMForCausalLM DeepseekForCausalLM DeepseekV2ForCausalLM DeepseekV3ForCausalLM Dots1ForCausalLM "
    "Ernie4_5_ForCausalLM Ernie4_5_MoeForCausalLM ExaoneForCausalLM Fairseq2LlamaForCausalLM FalconForCausalLM "
    "FalconMambaForCausalLM Florence2ForConditionalGeneration FuyuForCausalLM GPT2LMHeadModel "
    "GPTBigCodeForCausalLM GPTJForCausalLM GPTNeoXForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM "
    "Gemma3ForConditionalGeneration GemmaForCausalLM Glm4ForCausalLM GlmForCausalLM GraniteForCausalLM "
    "GraniteMoeForCausalLM GraniteMoeSharedForCausalLM GraniteSpeechForConditionalGeneration GritLM "
    "Grok1ModelForCausalLM HeliumForCausalLM HunYuanMoEV1ForCausalLM Idefics3ForConditionalGeneration "
    "InternLM2ForCausalLM InternLM2VEForCausalLM InternLM3ForCausalLM InternLMForCausalLM JAISLMHeadModel "
    "JambaForCausalLM KeyeForConditionalGeneration KimiVLForConditionalGeneration LLaMAForCausalLM "
    "Llama4ForCausalLM Llama4ForConditionalGeneration LlamaForCausalLM LlavaForConditionalGeneration "
    "LlavaNextForConditionalGeneration LlavaNextVideoForConditionalGeneration "
    "LlavaOnevisionForConditionalGeneration MPTForCausalLM Mamba2ForCausalLM MambaForCausalLM "
    "MantisForConditionalGeneration MiMoForCausalLM MiniCPM3ForCausalLM MiniCPMForCausalLM MiniCPMO MiniCPMV "
    "MiniMaxM1ForCausalLM MiniMaxText01ForCausalLM MiniMaxVL01ForConditionalGeneration "
    "Mistral3ForConditionalGeneration MistralForCausalLM MixtralForCausalLM MllamaForConditionalGeneration "
    "MolmoForCausalLM MptForCausalLM NemotronForCausalLM NemotronHForCausalLM OPTForCausalLM Olmo2ForCausalLM "
    "OlmoForCausalLM OlmoeForCausalLM OrionForCausalLM PaliGemmaForConditionalGeneration PersimmonForCausalLM "
    "Phi3ForCausalLM Phi3SmallForCausalLM Phi3VForCausalLM Phi4MMForCausalLM Phi4MultimodalForCausalLM "
    "PhiForCausalLM PhiMoEForCausalLM PixtralForConditionalGeneration Plamo2ForCausalLM QWenLMHeadModel "
    "QuantMixtralForCausalLM Qwen2AudioForConditionalGeneration Qwen2ForCausalLM Qwen2MoeForCausalLM "
    "Qwen3ForCausalLM Qwen3MoeForCausalLM RWForCausalLM SmolVLMForConditionalGeneration SolarForCausalLM "
    "StableLMEpochForCausalLM StableLmForCausalLM Starcoder2ForCausalLM TarsierForConditionalGeneration "
    "TeleChat2ForCausalLM TeleFLMForCausalLM TransformersForCausalLM UltravoxModel "
    "WhisperForConditionalGeneration XverseForCausalLM Zamba2ForCausalLM"
).split())
# Architectures whose code needs what the serving environment lacks.
UNLOADABLE = frozenset((
    "ArcticForCausalLM DeepseekVLV2ForCausalLM FalconH1ForCausalLM GLM4VForCausalLM "
    "Gemma3nForConditionalGeneration Glm4vForConditionalGeneration GraniteMoeHybridForCausalLM H2OVLChatModel "
    "InternVLChatModel NVLM_D Ovis Qwen2VLForConditionalGeneration Qwen2_5OmniForConditionalGeneration "
    "Qwen2_5OmniModel Qwen2_5_VLForConditionalGeneration QwenVLForConditionalGeneration SkyworkR1VChatModel "
    "Tarsier2ForConditionalGeneration"
).split())
# Architectures that vLLM has for something else.
OTHERS = frozenset((
    "BertForSequenceClassification BertModel DeepSeekMTPModel EAGLEModel Eagle3LlamaForCausalLM "
    "EagleLlamaForCausalLM EagleMiniCPMForCausalLM GPT2ForSequenceClassification Gemma2Model GteModel GteNewModel "
    "InternLM2ForRewardModel JambaForSequenceClassification LlamaModel MLPSpeculatorPreTrainedModel MedusaModel "
    "MiMoMTPModel MistralModel ModernBertForSequenceClassification ModernBertModel NomicBertModel "
    "PrithviGeoSpatialMAE Qwen2ForProcessRewardModel Qwen2ForRewardModel Qwen2ForSequenceClassification "
    "Qwen2Model Qwen3ForSequenceClassification RobertaForMaskedLM RobertaForSequenceClassification RobertaModel "
    "XLMRobertaForSequenceClassification XLMRobertaModel"
).split())
# model_type of a config.
MODEL_TYPES = frozenset((
    "NVLM_D RefinedWeb RefinedWebModel albert align altclip aria aria_text audio-spectrogram-transformer "
    "autoformer aya_vision bamba bark bart beit bert bert-generation big_bird bigbird_pegasus biogpt bit "
    "blenderbot blenderbot-small blip blip-2 bloom bridgetower bros camembert canine chameleon chatglm "
    "chinese_clip chinese_clip_vision_model clap clip clip_text_model clip_vision_model clipseg clvp code_llama "
    "codegen cohere cohere2 colpali conditional_detr convbert convnext convnextv2 cpmant ctrl cvt dab-detr dac "
    "data2vec-audio data2vec-text data2vec-vision dbrx deberta deberta-v2 decision_transformer deepseek_v2 "
    "deepseek_v3 deepseek_vl_v2 deformable_detr deit depth_anything depth_pro deta detr diffllama dinat dinov2 "
    "dinov2_with_registers distilbert donut-swin dpr dpt eagle efficientformer efficientnet electra emu3 encodec "
    "encoder-decoder ernie ernie_m esm exaone falcon falcon_mamba fastspeech2_conformer flaubert flava fnet "
    "focalnet fsmt funnel fuyu gemma gemma2 gemma3 gemma3_text git glm glm4 glpn got_ocr2 gpt-sw3 gpt2 "
    "gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gptj gptsan-japanese granite granitemoe granitemoeshared "
    "granitevision graphormer grounding-dino groupvit helium hiera hubert ibert idefics idefics2 idefics3 "
    "idefics3_vision ijepa imagegpt informer instructblip instructblipvideo jais jamba jetmoe jukebox kimi_vl "
    "kosmos-2 layoutlm layoutlmv2 layoutlmv3 led levit lilt llama llama4 llama4_text llava llava_next "
    "llava_next_video llava_onevision longformer longt5 luke lxmert m2m_100 mamba mamba2 marian markuplm "
    "mask2former maskformer maskformer-swin mbart mctct medusa mega megatron-bert mgp-str mimi minimax_text_01 "
    "minimax_vl_01 mistral mistral3 mixtral mllama mlp_speculator mobilebert mobilenet_v1 mobilenet_v2 mobilevit "
    "mobilevitv2 modernbert moonshine moshi mpnet mpt mra mt5 musicgen musicgen_melody mvp nat nemotron nezha "
    "nllb-moe nougat nystromformer olmo olmo2 olmoe omdet-turbo oneformer open-llama openai-gpt opt ovis owlv2 "
    "owlvit paligemma patchtsmixer patchtst pegasus pegasus_x perceiver persimmon phi phi3 phi4_multimodal phimoe "
    "pix2struct pixtral plbart poolformer pop2piano prompt_depth_anything prophetnet pvt pvt_v2 qdqbert qwen2 "
    "qwen2_5_vl qwen2_audio qwen2_audio_encoder qwen2_moe qwen2_vl qwen3 qwen3_moe rag realm recurrent_gemma "
    "reformer regnet rembert resnet retribert roberta roberta-prelayernorm roc_bert roformer rt_detr "
    "rt_detr_resnet rt_detr_v2 rwkv sam sam_vision_model seamless_m4t seamless_m4t_v2 segformer seggpt sew sew-d "
    "shieldgemma2 siglip siglip2 siglip_vision_model skywork_chat smolvlm smolvlm_vision solar "
    "speech-encoder-decoder speech_to_text speech_to_text_2 speecht5 splinter squeezebert stablelm starcoder2 "
    "superglue superpoint swiftformer swin swin2sr swinv2 switch_transformers t5 table-transformer tapas telechat "
    "textnet time_series_transformer timesformer timm_backbone timm_wrapper trajectory_transformer transfo-xl "
    "trocr tvlt tvp udop ultravox umt5 unispeech unispeech-sat univnet upernet van video_llava videomae vilt "
    "vipllava vision-encoder-decoder vision-text-dual-encoder visual_bert vit vit_hybrid vit_mae vit_msn vitdet "
    "vitmatte vitpose vitpose_backbone vits vivit wav2vec2 wav2vec2-bert wav2vec2-conformer wavlm whisper xclip "
    "xglm xlm xlm-prophetnet xlm-roberta xlm-roberta-xl xlnet xmod yolos yoso zamba zamba2 zoedepth"
).split())
# tokenizer_class of a tokenizer_config.
TOKENIZERS = frozenset((
    "AlbertTokenizer AlbertTokenizerFast BartTokenizer BartTokenizerFast BarthezTokenizer BarthezTokenizerFast "
    "BartphoTokenizer BasicTokenizer BertGenerationTokenizer BertJapaneseTokenizer BertTokenizer "
    "BertTokenizerFast BertweetTokenizer BigBirdTokenizer BigBirdTokenizerFast BioGptTokenizer "
    "BlenderbotSmallTokenizer BlenderbotSmallTokenizerFast BlenderbotTokenizer BlenderbotTokenizerFast "
    "BloomTokenizerFast ByT5Tokenizer CLIPTokenizer CLIPTokenizerFast CTRLTokenizer CamembertTokenizer "
    "CamembertTokenizerFast CanineTokenizer CharacterTokenizer ClvpTokenizer CodeGenTokenizer "
    "CodeGenTokenizerFast CodeLlamaTokenizer CodeLlamaTokenizerFast CohereTokenizerFast ConvBertTokenizer "
    "ConvBertTokenizerFast CpmAntTokenizer CpmTokenizer CpmTokenizerFast DPRContextEncoderTokenizer "
    "DPRContextEncoderTokenizerFast DPRQuestionEncoderTokenizer DPRQuestionEncoderTokenizerFast "
    "DPRReaderTokenizer DPRReaderTokenizerFast DebertaTokenizer DebertaTokenizerFast DebertaV2Tokenizer "
    "DebertaV2TokenizerFast DistilBertTokenizer DistilBertTokenizerFast ElectraTokenizer ElectraTokenizerFast "
    "ErnieMTokenizer EsmTokenizer FNetTokenizer FNetTokenizerFast FSMTTokenizer FastSpeech2ConformerTokenizer "
    "FlaubertTokenizer FunnelTokenizer FunnelTokenizerFast GPT2Tokenizer GPT2TokenizerFast "
    "GPTNeoXJapaneseTokenizer GPTNeoXTokenizerFast GPTSanJapaneseTokenizer GPTSw3Tokenizer GemmaTokenizer "
    "GemmaTokenizerFast HerbertTokenizer HerbertTokenizerFast JukeboxTokenizer LEDTokenizer LEDTokenizerFast "
    "LayoutLMTokenizer LayoutLMTokenizerFast LayoutLMv2Tokenizer LayoutLMv2TokenizerFast LayoutLMv3Tokenizer "
    "LayoutLMv3TokenizerFast LayoutXLMTokenizer LayoutXLMTokenizerFast LlamaTokenizer LlamaTokenizerFast "
    "LongformerTokenizer LongformerTokenizerFast LukeTokenizer LxmertTokenizer LxmertTokenizerFast "
    "M2M100Tokenizer MBart50Tokenizer MBart50TokenizerFast MBartTokenizer MBartTokenizerFast MLukeTokenizer "
    "MPNetTokenizer MPNetTokenizerFast MT5Tokenizer MT5TokenizerFast MarianTokenizer MarkupLMTokenizer "
    "MarkupLMTokenizerFast MecabTokenizer MgpstrTokenizer MobileBertTokenizer MobileBertTokenizerFast "
    "MvpTokenizer MvpTokenizerFast MyT5Tokenizer NllbTokenizer NllbTokenizerFast NougatTokenizerFast "
    "OpenAIGPTTokenizer OpenAIGPTTokenizerFast PLBartTokenizer PegasusTokenizer PegasusTokenizerFast "
    "PerceiverTokenizer PhobertTokenizer Pop2PianoTokenizer PreTrainedTokenizer PreTrainedTokenizerBase "
    "PreTrainedTokenizerFast ProphetNetTokenizer Qwen2Tokenizer Qwen2TokenizerFast RagTokenizer RealmTokenizer "
    "RealmTokenizerFast ReformerTokenizer ReformerTokenizerFast RemBertTokenizer RemBertTokenizerFast "
    "RetriBertTokenizer RetriBertTokenizerFast RoCBertTokenizer RoFormerTokenizer RoFormerTokenizerFast "
    "RobertaTokenizer RobertaTokenizerFast SeamlessM4TTokenizer SeamlessM4TTokenizerFast SiglipTokenizer "
    "Speech2Text2Tokenizer Speech2TextTokenizer SpeechT5Tokenizer SplinterTokenizer SplinterTokenizerFast "
    "SqueezeBertTokenizer SqueezeBertTokenizerFast T5Tokenizer T5TokenizerFast TFBertTokenizer TFGPT2Tokenizer "
    "TapasTokenizer TapexTokenizer TransfoXLTokenizer UdopTokenizer UdopTokenizerFast VitsTokenizer "
    "Wav2Vec2CTCTokenizer Wav2Vec2PhonemeCTCTokenizer Wav2Vec2Tokenizer WhisperTokenizer WhisperTokenizerFast "
    "WordpieceTokenizer XGLMTokenizer XGLMTokenizerFast XLMProphetNetTokenizer XLMRobertaTokenizer "
    "XLMRobertaTokenizerFast XLMTokenizer XLNetTokenizer XLNetTokenizerFast"
).split())
# Options that no-NAME turns off.
SWITCHES = frozenset((
    "calculate-kv-scales disable-cascade-attn disable-chunked-mm-input disable-custom-all-reduce "
    "disable-hybrid-kv-cache-manager disable-mm-preprocessor-cache disable-sliding-window enable-chunked-prefill "
    "enable-eplb enable-expert-parallel enable-lora enable-lora-bias enable-multimodal-encoder-data-parallel "
    "enable-prefix-caching enable-prompt-adapter enable-prompt-embeds enable-reasoning enable-sleep-mode "
    "enforce-eager eplb-log-balancedness fully-sharded-loras guided-decoding-disable-additional-properties "
    "guided-decoding-disable-any-whitespace guided-decoding-disable-fallback multi-step-stream-outputs "
    "ray-workers-use-nsight skip-tokenizer-init trust-remote-code use-tqdm-on-load"
).split())
# Options that take a value.
VALUES = frozenset((
    "additional-config allowed-headers allowed-local-media-path allowed-methods allowed-origins api-key "
    "api-server-count block-size chat-template chat-template-content-format code-revision collect-detailed-traces "
    "compilation-config config config-format cpu-offload-gb cuda-graph-sizes data-parallel-address "
    "data-parallel-backend data-parallel-rank data-parallel-rpc-port data-parallel-size data-parallel-size-local "
    "data-parallel-start-rank device distributed-executor-backend download-dir dtype eplb-step-interval "
    "eplb-window-size generation-config gpu-memory-utilization guided-decoding-backend hf-config-path "
    "hf-overrides hf-token host ignore-patterns kv-cache-dtype kv-events-config kv-transfer-config "
    "limit-mm-per-prompt load-format log-config-file logits-processor-pattern long-lora-scaling-factors "
    "long-prefill-token-threshold lora-dtype lora-extra-vocab-size lora-modules max-cpu-loras max-log-len "
    "max-logprobs max-long-partial-prefills max-lora-rank max-loras max-model-len max-num-batched-tokens "
    "max-num-partial-prefills max-num-seqs max-parallel-loading-workers max-prompt-adapter-token "
    "max-prompt-adapters max-seq-len-to-capture media-io-kwargs middleware mm-processor-kwargs model model-impl "
    "model-loader-extra-config num-gpu-blocks-override num-lookahead-slots num-redundant-experts "
    "num-scheduler-steps otlp-traces-endpoint override-attention-dtype override-generation-config "
    "override-neuron-config override-pooler-config pipeline-parallel-size port preemption-mode "
    "prefix-caching-hash-algo prompt-adapters pt-load-map-location qlora-adapter-name-or-path quantization "
    "reasoning-parser response-role revision root-path rope-scaling rope-theta scheduler-cls "
    "scheduler-delay-factor scheduling-policy seed served-model-name show-hidden-metrics-for-version "
    "speculative-config ssl-ca-certs ssl-cert-reqs ssl-certfile ssl-keyfile swap-space task tensor-parallel-size "
    "tokenizer tokenizer-mode tokenizer-pool-extra-config tokenizer-pool-size tokenizer-pool-type "
    "tokenizer-revision tool-call-parser tool-parser-plugin uvicorn-log-level worker-cls worker-extension-cls"
).split())
# Options that take an integer.
INTEGERS = frozenset((
    "api-server-count block-size cuda-graph-sizes data-parallel-rank data-parallel-rpc-port data-parallel-size "
    "data-parallel-size-local data-parallel-start-rank eplb-step-interval eplb-window-size "
    "long-prefill-token-threshold lora-extra-vocab-size max-cpu-loras max-log-len max-logprobs "
    "max-long-partial-prefills max-lora-rank max-loras max-num-partial-prefills max-num-seqs "
    "max-parallel-loading-workers max-prompt-adapter-token max-prompt-adapters max-seq-len-to-capture "
    "num-gpu-blocks-override num-lookahead-slots num-redundant-experts num-scheduler-steps pipeline-parallel-size "
    "port seed ssl-cert-reqs tensor-parallel-size tokenizer-pool-size"
).split())
# Options that take an integer, with k, M and the like for thousands.
SIZES = frozenset((
    "max-model-len max-num-batched-tokens"
).split())
# Options that take a number.
NUMBERS = frozenset((
    "cpu-offload-gb gpu-memory-utilization long-lora-scaling-factors rope-theta scheduler-delay-factor swap-space"
).split())
# Options that take JSON.
JSON = frozenset((
    "allowed-headers allowed-methods allowed-origins compilation-config kv-events-config kv-transfer-config "
    "limit-mm-per-prompt media-io-kwargs mm-processor-kwargs override-generation-config override-neuron-config "
    "rope-scaling speculative-config tokenizer-pool-extra-config"
).split())
# Those of the four that take None too.
OPTIONAL = frozenset((
    "kv-events-config kv-transfer-config long-lora-scaling-factors max-cpu-loras max-parallel-loading-workers "
    "mm-processor-kwargs num-gpu-blocks-override rope-theta seed"
).split())
# Options that are off where they are left out.
FLAGS = frozenset((
    "allow-credentials disable-async-output-proc disable-fastapi-docs disable-frontend-multiprocessing "
    "disable-log-requests disable-log-stats disable-uvicorn-access-log enable-auto-tool-choice "
    "enable-force-include-usage enable-prompt-tokens-details enable-request-id-headers "
    "enable-server-load-tracking enable-ssl-refresh expand-tools-even-if-tool-choice-none headless "
    "return-tokens-as-token-ids use-v2-block-manager"
).split())
# Values of options that take no others.
CHOICES = {
    "block-size": "1 8 16 32 64 128",
    "chat-template-content-format": "auto string openai",
    "collect-detailed-traces": (
        "all model worker None model,worker model,all worker,model worker,all all,model "
        "all,worker"
    ),
    "config-format": "auto hf mistral",
    "device": "auto cpu cuda hpu neuron tpu xpu None",
    "distributed-executor-backend": "external_launcher mp ray uni None",
    "dtype": "auto bfloat16 float float16 float32 half",
    "guided-decoding-backend": "auto guidance lm-format-enforcer outlines xgrammar",
    "kv-cache-dtype": "auto fp8 fp8_e4m3 fp8_e5m2",
    "load-format": (
        "auto pt safetensors npcache dummy tensorizer sharded_state gguf bitsandbytes mistral "
        "runai_streamer runai_streamer_sharded fastsafetensors"
    ),
    "lora-dtype": "auto bfloat16 float16",
    "model-impl": "auto vllm transformers",
    "preemption-mode": "recompute swap None",
    "prefix-caching-hash-algo": "builtin sha256",
    "reasoning-parser": "deepseek_r1 granite qwen3",
    "scheduling-policy": "fcfs priority",
    "task": "auto classify draft embed embedding generate reward score transcription",
    "tokenizer-mode": "auto custom mistral slow",
    "uvicorn-log-level": "debug info warning error critical trace",
}
# Defaults of a config, by its model_type.
DEFAULTS = {
    "bamba": {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128000,
        "max_position_embeddings": 262144},
    "bloom": {"hidden_size": 64, "n_head": 8, "n_layer": 2, "vocab_size": 250880},
    "chameleon": {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 32,
        "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 65536,
        "max_position_embeddings": 4096},
    "code_llama": {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 11008,
        "num_hidden_layers": 32, "vocab_size": 32000, "max_position_embeddings": 2048},
    "cohere": {"hidden_size": 8192, "num_attention_heads": 64, "intermediate_size": 22528,
        "num_hidden_layers": 40, "vocab_size": 256000, "max_position_embeddings": 8192},
    "cohere2": {"hidden_size": 8192, "num_attention_heads": 64, "intermediate_size": 22528,
        "num_hidden_layers": 40, "vocab_size": 256000, "max_position_embeddings": 8192,
        "sliding_window": 4096},
    "dbrx": {"d_model": 2048, "vocab_size": 32000},
    "deepseek_v3": {"hidden_size": 7168, "num_attention_heads": 128, "num_key_value_heads": 128,
        "intermediate_size": 18432, "num_hidden_layers": 61, "vocab_size": 129280,
        "max_position_embeddings": 4096, "n_routed_experts": 256, "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048},
    "falcon": {"hidden_size": 4544, "num_attention_heads": 71, "num_hidden_layers": 32, "vocab_size": 65024,
        "max_position_embeddings": 2048, "multi_query": True, "new_decoder_architecture": False},
    "falcon_mamba": {"hidden_size": 768, "num_hidden_layers": 32, "vocab_size": 50280},
    "fuyu": {"hidden_size": 4096, "num_attention_heads": 64, "intermediate_size": 16384,
        "num_hidden_layers": 36, "vocab_size": 262144, "max_position_embeddings": 16384},
    "gemma": {"hidden_size": 3072, "num_attention_heads": 16, "head_dim": 256, "num_key_value_heads": 16,
        "intermediate_size": 24576, "num_hidden_layers": 28, "vocab_size": 256000,
        "max_position_embeddings": 8192},
    "gemma2": {"hidden_size": 2304, "num_attention_heads": 8, "head_dim": 256, "num_key_value_heads": 4,
        "intermediate_size": 9216, "num_hidden_layers": 26, "vocab_size": 256000,
        "max_position_embeddings": 8192, "sliding_window": 4096},
    "gemma3_text": {"hidden_size": 2304, "num_attention_heads": 8, "head_dim": 256, "num_key_value_heads": 4,
        "intermediate_size": 9216, "num_hidden_layers": 26, "vocab_size": 262208,
        "max_position_embeddings": 131072, "sliding_window": 4096},
    "glm": {"hidden_size": 4096, "num_attention_heads": 32, "head_dim": 128, "num_key_value_heads": 2,
        "intermediate_size": 13696, "num_hidden_layers": 40, "vocab_size": 151552,
        "max_position_embeddings": 131072},
    "glm4": {"hidden_size": 4096, "num_attention_heads": 32, "head_dim": 128, "num_key_value_heads": 2,
        "intermediate_size": 13696, "num_hidden_layers": 40, "vocab_size": 151552,
        "max_position_embeddings": 131072},
    "gpt-sw3": {"n_embd": 768, "n_head": 12, "n_layer": 12, "vocab_size": 50257, "n_positions": 1024},
    "gpt2": {"n_embd": 768, "n_head": 12, "n_layer": 12, "vocab_size": 50257, "n_positions": 1024},
    "gpt_bigcode": {"n_embd": 768, "n_head": 12, "n_layer": 12, "vocab_size": 50257, "n_positions": 1024,
        "multi_query": True},
    "gpt_neox": {"hidden_size": 6144, "num_attention_heads": 64, "intermediate_size": 24576,
        "num_hidden_layers": 44, "vocab_size": 50432, "max_position_embeddings": 2048},
    "gptj": {"n_embd": 4096, "n_head": 16, "n_layer": 28, "vocab_size": 50400, "n_positions": 2048,
        "rotary_dim": 64},
    "granite": {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 11008,
        "num_hidden_layers": 32, "vocab_size": 32000, "max_position_embeddings": 2048},
    "granitemoe": {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 11008,
        "num_hidden_layers": 32, "vocab_size": 32000, "max_position_embeddings": 2048,
        "num_local_experts": 8, "num_experts_per_tok": 2},
    "granitemoeshared": {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 11008,
        "num_hidden_layers": 32, "vocab_size": 32000, "max_position_embeddings": 2048,
        "num_local_experts": 8, "num_experts_per_tok": 2},
    "helium": {"hidden_size": 2560, "num_attention_heads": 20, "head_dim": 128, "num_key_value_heads": 20,
        "intermediate_size": 7040, "num_hidden_layers": 24, "vocab_size": 48000,
        "max_position_embeddings": 4096},
    "jamba": {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 65536,
        "max_position_embeddings": 262144, "num_experts": 16, "num_experts_per_tok": 2},
    "llama": {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 11008,
        "num_hidden_layers": 32, "vocab_size": 32000, "max_position_embeddings": 2048},
    "llama4_text": {"hidden_size": 5120, "num_attention_heads": 40, "head_dim": 128, "num_key_value_heads": 8,
        "intermediate_size": 8192, "num_hidden_layers": 48, "vocab_size": 202048,
        "max_position_embeddings": 131072, "num_local_experts": 16, "num_experts_per_tok": 1},
    "mamba": {"hidden_size": 768, "num_hidden_layers": 32, "vocab_size": 50280},
    "mamba2": {"hidden_size": 4096, "head_dim": 64, "num_hidden_layers": 64, "vocab_size": 32768},
    "mistral": {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 32000,
        "max_position_embeddings": 131072, "sliding_window": 4096},
    "mixtral": {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 32000,
        "max_position_embeddings": 131072, "num_local_experts": 8, "num_experts_per_tok": 2},
    "mpt": {"d_model": 2048, "vocab_size": 50368},
    "nemotron": {"hidden_size": 6144, "num_attention_heads": 48, "intermediate_size": 24576,
        "num_hidden_layers": 32, "vocab_size": 256000, "max_position_embeddings": 4096},
    "olmo": {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 11008,
        "num_hidden_layers": 32, "vocab_size": 50304, "max_position_embeddings": 2048},
    "olmo2": {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 11008,
        "num_hidden_layers": 32, "vocab_size": 50304, "max_position_embeddings": 2048},
    "olmoe": {"hidden_size": 2048, "num_attention_heads": 16, "intermediate_size": 2048,
        "num_hidden_layers": 16, "vocab_size": 50304, "max_position_embeddings": 4096,
        "num_experts": 64, "num_experts_per_tok": 8},
    "opt": {"hidden_size": 768, "num_attention_heads": 12, "ffn_dim": 3072, "num_hidden_layers": 12,
        "vocab_size": 50272, "max_position_embeddings": 2048},
    "paligemma": {"hidden_size": 2048, "vocab_size": 257152},
    "persimmon": {"hidden_size": 4096, "num_attention_heads": 64, "intermediate_size": 16384,
        "num_hidden_layers": 36, "vocab_size": 262144, "max_position_embeddings": 16384},
    "phi": {"hidden_size": 2048, "num_attention_heads": 32, "intermediate_size": 8192,
        "num_hidden_layers": 24, "vocab_size": 51200, "max_position_embeddings": 2048},
    "phi3": {"hidden_size": 3072, "num_attention_heads": 32, "intermediate_size": 8192,
        "num_hidden_layers": 32, "vocab_size": 32064, "max_position_embeddings": 4096},
    "phi4_multimodal": {"hidden_size": 3072, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 8192, "num_hidden_layers": 32, "vocab_size": 200064,
        "max_position_embeddings": 131072},
    "qwen2": {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 32,
        "intermediate_size": 22016, "num_hidden_layers": 32, "vocab_size": 151936,
        "max_position_embeddings": 32768, "sliding_window": 4096, "use_sliding_window": False},
    "qwen2_moe": {"hidden_size": 2048, "num_attention_heads": 16, "num_key_value_heads": 16,
        "intermediate_size": 5632, "num_hidden_layers": 24, "vocab_size": 151936,
        "max_position_embeddings": 32768, "sliding_window": 4096, "use_sliding_window": False,
        "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632, "decoder_sparse_step": 1},
    "qwen3": {"hidden_size": 4096, "num_attention_heads": 32, "head_dim": 128, "num_key_value_heads": 32,
        "intermediate_size": 22016, "num_hidden_layers": 32, "vocab_size": 151936,
        "max_position_embeddings": 32768, "sliding_window": 4096, "use_sliding_window": False},
    "qwen3_moe": {"hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 4,
        "intermediate_size": 6144, "num_hidden_layers": 24, "vocab_size": 151936,
        "max_position_embeddings": 32768, "sliding_window": 4096, "use_sliding_window": False,
        "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768,
        "decoder_sparse_step": 1},
    "stablelm": {"hidden_size": 2560, "num_attention_heads": 32, "num_key_value_heads": 32,
        "intermediate_size": 6912, "num_hidden_layers": 32, "vocab_size": 50304,
        "max_position_embeddings": 4096},
    "starcoder2": {"hidden_size": 3072, "num_attention_heads": 24, "num_key_value_heads": 2,
        "intermediate_size": 12288, "num_hidden_layers": 30, "vocab_size": 49152,
        "max_position_embeddings": 4096},
    "zamba2": {"hidden_size": 2560, "num_attention_heads": 32, "num_hidden_layers": 54, "vocab_size": 32000,
        "max_position_embeddings": 4096},
}
# Types of configs with one for the language model in them, and its default type.
LANGUAGE_PARTS = {"aya_vision": "cohere2", "blip-2": "opt", "colpali": "gemma", "fuyu": "persimmon",
    "gemma3": "gemma3_text", "got_ocr2": "qwen2", "granitevision": "llama", "idefics2": "mistral",
    "idefics3": "llama", "instructblip": "opt", "instructblipvideo": "opt", "llama4": "llama4_text",
    "llava": "llama", "llava_next": "llama", "llava_next_video": "llama",
    "llava_onevision": "qwen2", "mistral3": "mistral", "paligemma": "gemma", "qwen2_audio": "qwen2",
    "shieldgemma2": "gemma3_text", "smolvlm": "llama", "video_llava": "llama", "vipllava": "llama"}
