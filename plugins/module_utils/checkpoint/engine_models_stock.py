"""Names that vLLM 0.12.0 and transformers 4.57.6 know.

Written by vllm_src/engine_models.py: do not edit.
"""

# Architectures that generate text.
GENERATORS = frozenset((
    "AfmoeForCausalLM ApertusForCausalLM AquilaForCausalLM AquilaModel ArceeForCausalLM ArcticForCausalLM "
    "AriaForConditionalGeneration AriaTextForCausalLM AyaVisionForConditionalGeneration BaiChuanForCausalLM "
    "BaichuanForCausalLM BailingMoeForCausalLM BailingMoeV2ForCausalLM BambaForCausalLM "
    "BeeForConditionalGeneration BitNetForCausalLM Blip2ForConditionalGeneration BloomForCausalLM "
    "ChameleonForConditionalGeneration ChatGLMForConditionalGeneration ChatGLMModel Cohere2ForCausalLM "
    "Cohere2VisionForConditionalGeneration CohereForCausalLM CwmForCausalLM DbrxForCausalLM DeciLMForCausalLM "
    "DeepseekForCausalLM DeepseekOCRForCausalLM DeepseekV2ForCausalLM DeepseekV32ForCausalLM "
    "DeepseekV3ForCausalLM DeepseekVLV2ForCausalLM DogeForCausalLM Dots1ForCausalLM DotsOCRForCausalLM "
    "Emu3ForCausalLM Emu3ForConditionalGeneration Ernie4_5ForCausalLM Ernie4_5_MoeForCausalLM "
    "Ernie4_5_VLMoeForConditionalGeneration Exaone4ForCausalLM ExaoneForCausalLM Fairseq2LlamaForCausalLM "
    "FalconForCausalLM FalconH1ForCausalLM FalconMambaForCausalLM FlexOlmoForCausalLM FuyuForCausalLM "
    "GLM4VForCausalLM GPT2LMHeadModel GPTBigCodeForCausalLM GPTJForCausalLM GPTNeoXForCausalLM Gemma2ForCausalLM "
    "Gemma3ForCausalLM Gemma3ForConditionalGeneration Gemma3nForCausalLM Gemma3nForConditionalGeneration "
    "GemmaForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM Glm4vForConditionalGeneration "
    "Glm4vMoeForConditionalGeneration GlmForCausalLM GotOcr2ForConditionalGeneration GptOssForCausalLM "
    "GraniteForCausalLM GraniteMoeForCausalLM GraniteMoeHybridForCausalLM GraniteMoeSharedForCausalLM "
    "GraniteSpeechForConditionalGeneration GritLM Grok1ModelForCausalLM H2OVLChatModel HeliumForCausalLM "
    "HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM HunYuanVLForConditionalGeneration "
    "Idefics3ForConditionalGeneration InternLM2ForCausalLM InternLM2VEForCausalLM InternLM3ForCausalLM "
    "InternLMForCausalLM InternS1ForConditionalGeneration InternVLChatModel InternVLForConditionalGeneration "
    "JAISLMHeadModel JambaForCausalLM KeyeForConditionalGeneration KeyeVL1_5ForConditionalGeneration "
    "KimiLinearForCausalLM KimiVLForConditionalGeneration LLaMAForCausalLM Lfm2ForCausalLM Lfm2MoeForCausalLM "
    "LightOnOCRForConditionalGeneration Llama4ForCausalLM Llama4ForConditionalGeneration LlamaForCausalLM "
    "Llama_Nemotron_Nano_VL LlavaForConditionalGeneration LlavaNextForConditionalGeneration "
    "LlavaNextVideoForConditionalGeneration LlavaOnevisionForConditionalGeneration LongcatFlashForCausalLM "
    "MPTForCausalLM Mamba2ForCausalLM MambaForCausalLM MantisForConditionalGeneration MiDashengLMModel "
    "MiMoForCausalLM MiniCPM3ForCausalLM MiniCPMForCausalLM MiniCPMO MiniCPMV MiniMaxForCausalLM "
    "MiniMaxM1ForCausalLM MiniMaxM2ForCausalLM MiniMaxText01ForCausalLM MiniMaxVL01ForConditionalGeneration "
    "MinistralForCausalLM Mistral3ForConditionalGeneration MistralForCausalLM MistralLarge3ForCausalLM "
    "MixtralForCausalLM MllamaForCausalLM ModernBertDecoderForCausalLM MolmoForCausalLM MptForCausalLM NVLM_D "
    "NemotronForCausalLM NemotronHForCausalLM NemotronH_Nano_VL_V2 OPTForCausalLM Olmo2ForCausalLM "
    "Olmo3ForCausalLM OlmoForCausalLM OlmoeForCausalLM OpenCUAForConditionalGeneration OrionForCausalLM "
    "OuroForCausalLM Ovis Ovis2_5 PaddleOCRVLForConditionalGeneration PaliGemmaForConditionalGeneration "
    "PanguEmbeddedForCausalLM PanguUltraMoEForCausalLM PersimmonForCausalLM Phi3ForCausalLM Phi3VForCausalLM "
    "Phi4MMForCausalLM Phi4MultimodalForCausalLM PhiForCausalLM PhiMoEForCausalLM PixtralForConditionalGeneration "
    "Plamo2ForCausalLM Plamo3ForCausalLM QWenLMHeadModel Qwen2AudioForConditionalGeneration Qwen2ForCausalLM "
    "Qwen2MoeForCausalLM Qwen2VLForConditionalGeneration Qwen2_5OmniForConditionalGeneration Qwen2_5OmniModel "
    "Qwen2_5_VLForConditionalGeneration Qwen3ForCausalLM Qwen3MoeForCausalLM Qwen3NextForCausalLM "
    "Qwen3OmniMoeForConditionalGeneration Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration "
    "QwenVLForConditionalGeneration RForConditionalGeneration RWForCausalLM SeedOssForCausalLM "
    "SkyworkR1VChatModel SmolLM3ForCausalLM SmolVLMForConditionalGeneration SolarForCausalLM "
    "StableLMEpochForCausalLM StableLmForCausalLM Starcoder2ForCausalLM Step3TextForCausalLM "
    "Step3VLForConditionalGeneration Tarsier2ForConditionalGeneration TarsierForConditionalGeneration "
    "TeleChat2ForCausalLM TeleChatForCausalLM TeleFLMForCausalLM TransformersForCausalLM "
    "TransformersMoEForCausalLM TransformersMultiModalForCausalLM TransformersMultiModalMoEForCausalLM "
    "UltravoxModel VaultGemmaForCausalLM VoxtralForConditionalGeneration WhisperForConditionalGeneration "
    "XverseForCausalLM Zamba2ForCausalLM"
).split())
# Architectures whose code needs what the serving environment lacks.
UNLOADABLE = frozenset((
    "HCXVisionForCausalLM PrithviGeoSpatialMAE Terratorch"
).split())
# Architectures that vLLM has for something else.
OTHERS = frozenset((
    "BertForSequenceClassification BertForTokenClassification BertModel BertSpladeSparseEmbeddingModel CLIPModel "
    "DeepSeekMTPModel Eagle3LlamaForCausalLM Eagle3Qwen2_5vlForCausalLM Eagle3Qwen3vlForCausalLM "
    "EagleDeepSeekMTPModel EagleLlama4ForCausalLM EagleLlamaForCausalLM EagleMiniCPMForCausalLM "
    "EagleMistralLarge3ForCausalLM ErnieMTPModel GPT2ForSequenceClassification Gemma2Model Gemma3TextModel "
    "Glm4MoeMTPModel GteModel GteNewForSequenceClassification GteNewModel InternLM2ForRewardModel "
    "JambaForSequenceClassification JinaVLForRanking LlamaForCausalLMEagle3 LlamaModel LongCatFlashMTPModel "
    "MedusaModel MiMoMTPModel MistralModel ModernBertForSequenceClassification ModernBertForTokenClassification "
    "ModernBertModel NomicBertModel OpenPanguMTPModel PrithviGeoSpatialMAE Qwen2ForProcessRewardModel "
    "Qwen2ForRewardModel Qwen2Model Qwen3NextMTP RobertaForMaskedLM RobertaForSequenceClassification RobertaModel "
    "SiglipModel Terratorch TransformersEmbeddingModel TransformersForSequenceClassification "
    "TransformersMoEEmbeddingModel TransformersMoEForSequenceClassification TransformersMultiModalEmbeddingModel "
    "TransformersMultiModalForSequenceClassification XLMRobertaForSequenceClassification XLMRobertaModel"
).split())
# model_type of a config.
MODEL_TYPES = frozenset((
    "RefinedWeb RefinedWebModel afmoe aimv2 aimv2_vision_model albert align altclip apertus arcee aria aria_text "
    "audio-spectrogram-transformer autoformer aya_vision bamba bark bart beit bert bert-generation big_bird "
    "bigbird_pegasus biogpt bit bitnet blenderbot blenderbot-small blip blip-2 blip_2_qformer bloom blt "
    "bridgetower bros camembert canine chameleon chatglm chinese_clip chinese_clip_vision_model clap clip "
    "clip_text_model clip_vision_model clipseg clvp code_llama codegen cohere cohere2 cohere2_vision colpali "
    "colqwen2 conditional_detr convbert convnext convnextv2 cpmant csm ctrl cvt d_fine dab-detr dac "
    "data2vec-audio data2vec-text data2vec-vision dbrx deberta deberta-v2 decision_transformer deepseek_v2 "
    "deepseek_v3 deepseek_v32 deepseek_vl deepseek_vl_hybrid deepseek_vl_v2 deformable_detr deit depth_anything "
    "depth_pro deta detr dia diffllama dinat dinov2 dinov2_with_registers dinov3_convnext dinov3_vit distilbert "
    "doge donut-swin dots1 dpr dpt eagle edgetam edgetam_video edgetam_vision_model efficientformer "
    "efficientloftr efficientnet electra emu3 encodec encoder-decoder eomt ernie ernie4_5 ernie4_5_moe ernie_m "
    "esm evolla exaone4 falcon falcon_h1 falcon_mamba fastspeech2_conformer fastspeech2_conformer_with_hifigan "
    "flaubert flava flex_olmo florence2 fnet focalnet fsmt funnel fuyu gemma gemma2 gemma3 gemma3_text gemma3n "
    "gemma3n_audio gemma3n_text gemma3n_vision git glm glm4 glm4_moe glm4v glm4v_moe glm4v_moe_text glm4v_text "
    "glpn got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj gptsan-japanese "
    "granite granite_speech granitemoe granitemoehybrid granitemoeshared granitevision graphormer grounding-dino "
    "groupvit helium hgnet_v2 hiera hubert hunyuan_v1_dense hunyuan_v1_moe hunyuan_vl ibert idefics idefics2 "
    "idefics3 idefics3_vision ijepa imagegpt informer instructblip instructblipvideo internvl internvl_vision "
    "jais jamba janus jetmoe jukebox kimi_linear kimi_vl kosmos-2 kosmos-2.5 kyutai_speech_to_text layoutlm "
    "layoutlmv2 layoutlmv3 led levit lfm2 lfm2_moe lfm2_vl lightglue lilt llama llama4 llama4_text llava "
    "llava_next llava_next_video llava_onevision longcat_flash longformer longt5 luke lxmert m2m_100 mamba mamba2 "
    "marian markuplm mask2former maskformer maskformer-swin mbart mctct medusa mega megatron-bert metaclip_2 "
    "mgp-str midashenglm mimi minimax ministral mistral mistral3 mixtral mlcd mllama mlp_speculator "
    "mm-grounding-dino mobilebert mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 modernbert modernbert-decoder "
    "moonshine moshi mpnet mpt mra mt5 musicgen musicgen_melody mvp nat nemotron nezha nllb-moe nougat "
    "nystromformer olmo olmo2 olmo3 olmoe omdet-turbo oneformer open-llama openai-gpt opt ovis ovis2 owlv2 owlvit "
    "paligemma parakeet_ctc parakeet_encoder patchtsmixer patchtst pegasus pegasus_x perceiver perception_encoder "
    "perception_lm persimmon phi phi3 phi4_multimodal phimoe pix2struct pixtral plbart poolformer pop2piano "
    "prompt_depth_anything prophetnet pvt pvt_v2 qdqbert qwen2 qwen2_5_omni qwen2_5_vl qwen2_5_vl_text "
    "qwen2_audio qwen2_audio_encoder qwen2_moe qwen2_vl qwen2_vl_text qwen3 qwen3_moe qwen3_next qwen3_omni_moe "
    "qwen3_vl qwen3_vl_moe qwen3_vl_moe_text qwen3_vl_text rag realm recurrent_gemma reformer regnet rembert "
    "resnet retribert roberta roberta-prelayernorm roc_bert roformer rt_detr rt_detr_resnet rt_detr_v2 rwkv sam "
    "sam2 sam2_hiera_det_model sam2_video sam2_vision_model sam_hq sam_hq_vision_model sam_vision_model "
    "seamless_m4t seamless_m4t_v2 seed_oss segformer seggpt sew sew-d shieldgemma2 siglip siglip2 "
    "siglip2_vision_model siglip_vision_model smollm3 smolvlm smolvlm_vision speculators speech-encoder-decoder "
    "speech_to_text speech_to_text_2 speecht5 splinter squeezebert stablelm starcoder2 step3_text step3_vl "
    "superglue superpoint swiftformer swin swin2sr swinv2 switch_transformers t5 t5gemma table-transformer tapas "
    "textnet time_series_transformer timesfm timesformer timm_backbone timm_wrapper trajectory_transformer "
    "transfo-xl trocr tvlt tvp udop ultravox umt5 unispeech unispeech-sat univnet upernet van vaultgemma "
    "video_llava videomae vilt vipllava vision-encoder-decoder vision-text-dual-encoder visual_bert vit "
    "vit_hybrid vit_mae vit_msn vitdet vitmatte vitpose vitpose_backbone vits vivit vjepa2 voxtral "
    "voxtral_encoder wav2vec2 wav2vec2-bert wav2vec2-conformer wavlm whisper xclip xcodec xglm xlm xlm-prophetnet "
    "xlm-roberta xlm-roberta-xl xlnet xlstm xmod yolos yoso zamba zamba2 zoedepth"
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
    "DebertaV2TokenizerFast DiaTokenizer DistilBertTokenizer DistilBertTokenizerFast ElectraTokenizer "
    "ElectraTokenizerFast ErnieMTokenizer EsmTokenizer FNetTokenizer FNetTokenizerFast FSMTTokenizer "
    "FastSpeech2ConformerTokenizer FlaubertTokenizer FunnelTokenizer FunnelTokenizerFast GPT2Tokenizer "
    "GPT2TokenizerFast GPTNeoXJapaneseTokenizer GPTNeoXTokenizerFast GPTSanJapaneseTokenizer GPTSw3Tokenizer "
    "GemmaTokenizer GemmaTokenizerFast HerbertTokenizer HerbertTokenizerFast JukeboxTokenizer LEDTokenizer "
    "LEDTokenizerFast LayoutLMTokenizer LayoutLMTokenizerFast LayoutLMv2Tokenizer LayoutLMv2TokenizerFast "
    "LayoutLMv3Tokenizer LayoutLMv3TokenizerFast LayoutXLMTokenizer LayoutXLMTokenizerFast LlamaTokenizer "
    "LlamaTokenizerFast LongformerTokenizer LongformerTokenizerFast LukeTokenizer LxmertTokenizer "
    "LxmertTokenizerFast M2M100Tokenizer MBart50Tokenizer MBart50TokenizerFast MBartTokenizer MBartTokenizerFast "
    "MLukeTokenizer MPNetTokenizer MPNetTokenizerFast MT5Tokenizer MT5TokenizerFast MarianTokenizer "
    "MarkupLMTokenizer MarkupLMTokenizerFast MecabTokenizer MgpstrTokenizer MistralCommonTokenizer "
    "MobileBertTokenizer MobileBertTokenizerFast MvpTokenizer MvpTokenizerFast MyT5Tokenizer NllbTokenizer "
    "NllbTokenizerFast NougatTokenizerFast OpenAIGPTTokenizer OpenAIGPTTokenizerFast PLBartTokenizer "
    "ParakeetTokenizerFast PegasusTokenizer PegasusTokenizerFast PerceiverTokenizer PhobertTokenizer "
    "Pop2PianoTokenizer PreTrainedTokenizer PreTrainedTokenizerBase PreTrainedTokenizerFast ProphetNetTokenizer "
    "Qwen2Tokenizer Qwen2TokenizerFast RagTokenizer RealmTokenizer RealmTokenizerFast ReformerTokenizer "
    "ReformerTokenizerFast RemBertTokenizer RemBertTokenizerFast RetriBertTokenizer RetriBertTokenizerFast "
    "RoCBertTokenizer RoFormerTokenizer RoFormerTokenizerFast RobertaTokenizer RobertaTokenizerFast "
    "SeamlessM4TTokenizer SeamlessM4TTokenizerFast SiglipTokenizer Speech2Text2Tokenizer Speech2TextTokenizer "
    "SpeechT5Tokenizer SplinterTokenizer SplinterTokenizerFast SqueezeBertTokenizer SqueezeBertTokenizerFast "
    "T5Tokenizer T5TokenizerFast TFBertTokenizer TFGPT2Tokenizer TapasTokenizer TapexTokenizer TransfoXLTokenizer "
    "UdopTokenizer UdopTokenizerFast VitsTokenizer Wav2Vec2CTCTokenizer Wav2Vec2PhonemeCTCTokenizer "
    "Wav2Vec2Tokenizer WhisperTokenizer WhisperTokenizerFast WordpieceTokenizer XGLMTokenizer XGLMTokenizerFast "
    "XLMProphetNetTokenizer XLMRobertaTokenizer XLMRobertaTokenizerFast XLMTokenizer XLNetTokenizer "
    "XLNetTokenizerFast"
).split())
# Options that no-NAME turns off.
SWITCHES = frozenset((
    "allow-credentials async-scheduling calculate-kv-scales data-parallel-external-lb data-parallel-hybrid-lb "
    "disable-cascade-attn disable-chunked-mm-input disable-custom-all-reduce disable-fastapi-docs "
    "disable-frontend-multiprocessing disable-hybrid-kv-cache-manager disable-log-requests "
    "disable-nccl-for-dp-synchronization disable-sliding-window disable-uvicorn-access-log "
    "enable-auto-tool-choice enable-chunked-prefill enable-dbo enable-eplb enable-expert-parallel "
    "enable-force-include-usage enable-log-outputs enable-log-requests enable-lora enable-mm-embeds "
    "enable-prefix-caching enable-prompt-embeds enable-prompt-tokens-details enable-request-id-headers "
    "enable-server-load-tracking enable-sleep-mode enable-ssl-refresh enable-tokenizer-info-endpoint "
    "enforce-eager exclude-tools-when-tool-choice-none fully-sharded-loras interleave-mm-strings kv-cache-metrics "
    "kv-sharing-fast-prefill log-error-stack ray-workers-use-nsight return-tokens-as-token-ids skip-mm-profiling "
    "skip-tokenizer-init tokens-only trust-remote-code trust-request-chat-template use-tqdm-on-load"
).split())
# Options that take a value.
VALUES = frozenset((
    "additional-config all2all-backend allowed-headers allowed-local-media-path allowed-media-domains "
    "allowed-methods allowed-origins api-key api-server-count block-size chat-template "
    "chat-template-content-format code-revision collect-detailed-traces compilation-config config config-format "
    "convert cp-kv-cache-interleave-size cpu-offload-gb cuda-graph-sizes cudagraph-capture-sizes "
    "data-parallel-address data-parallel-backend data-parallel-rank data-parallel-rpc-port data-parallel-size "
    "data-parallel-size-local data-parallel-start-rank dbo-decode-token-threshold dbo-prefill-token-threshold "
    "dcp-kv-cache-interleave-size decode-context-parallel-size default-mm-loras distributed-executor-backend "
    "download-dir dtype ec-transfer-config eplb-config expert-placement-strategy generation-config "
    "gpu-memory-utilization h11-max-header-count h11-max-incomplete-event-size hf-config-path hf-overrides "
    "hf-token host ignore-patterns io-processor-plugin kv-cache-dtype kv-cache-memory-bytes "
    "kv-cache-metrics-sample kv-events-config kv-offloading-backend kv-offloading-size kv-transfer-config "
    "limit-mm-per-prompt load-format log-config-file logits-processor-pattern logits-processors logprobs-mode "
    "long-prefill-token-threshold lora-dtype lora-modules mamba-block-size mamba-cache-dtype "
    "mamba-ssm-cache-dtype master-addr master-port max-cpu-loras max-cudagraph-capture-size max-log-len "
    "max-logprobs max-long-partial-prefills max-lora-rank max-loras max-model-len max-num-batched-tokens "
    "max-num-partial-prefills max-num-seqs max-parallel-loading-workers media-io-kwargs middleware "
    "mm-encoder-attn-backend mm-encoder-tp-mode mm-processor-cache-gb mm-processor-cache-type mm-processor-kwargs "
    "mm-shm-cache-max-object-size-mb model model-impl model-loader-extra-config nnodes node-rank "
    "num-gpu-blocks-override optimization-level otlp-traces-endpoint override-attention-dtype "
    "override-generation-config pipeline-parallel-size pooler-config port prefill-context-parallel-size "
    "prefix-caching-hash-algo pt-load-map-location quantization reasoning-parser reasoning-parser-plugin "
    "response-role revision root-path runner safetensors-load-strategy scheduler-cls scheduling-policy seed "
    "served-model-name show-hidden-metrics-for-version speculative-config ssl-ca-certs ssl-cert-reqs ssl-certfile "
    "ssl-keyfile stream-interval structured-outputs-config swap-space task tensor-parallel-size tokenizer "
    "tokenizer-mode tokenizer-revision tool-call-parser tool-parser-plugin tool-server uds uvicorn-log-level "
    "video-pruning-rate worker-cls worker-extension-cls"
).split())
# Options that take an integer.
INTEGERS = frozenset((
    "api-server-count block-size cp-kv-cache-interleave-size cuda-graph-sizes cudagraph-capture-sizes "
    "data-parallel-rank data-parallel-rpc-port data-parallel-size data-parallel-size-local "
    "data-parallel-start-rank dbo-decode-token-threshold dbo-prefill-token-threshold dcp-kv-cache-interleave-size "
    "decode-context-parallel-size h11-max-header-count h11-max-incomplete-event-size long-prefill-token-threshold "
    "mamba-block-size master-port max-cpu-loras max-cudagraph-capture-size max-log-len max-logprobs "
    "max-long-partial-prefills max-lora-rank max-loras max-num-partial-prefills max-num-seqs "
    "max-parallel-loading-workers mm-shm-cache-max-object-size-mb nnodes node-rank num-gpu-blocks-override "
    "pipeline-parallel-size port prefill-context-parallel-size seed ssl-cert-reqs stream-interval "
    "tensor-parallel-size"
).split())
# Options that take an integer, with k, M and the like for thousands.
SIZES = frozenset((
    "kv-cache-memory-bytes max-model-len max-num-batched-tokens"
).split())
# Options that take a number.
NUMBERS = frozenset((
    "cpu-offload-gb gpu-memory-utilization kv-cache-metrics-sample kv-offloading-size mm-processor-cache-gb "
    "swap-space video-pruning-rate"
).split())
# Options that take JSON.
JSON = frozenset((
    "allowed-headers allowed-methods allowed-origins compilation-config default-mm-loras ec-transfer-config "
    "eplb-config kv-events-config kv-transfer-config limit-mm-per-prompt media-io-kwargs mm-processor-kwargs "
    "override-generation-config pooler-config speculative-config structured-outputs-config"
).split())
# Those of the four that take None too.
OPTIONAL = frozenset((
    "cuda-graph-sizes cudagraph-capture-sizes default-mm-loras ec-transfer-config kv-cache-memory-bytes "
    "kv-events-config kv-offloading-size kv-transfer-config mamba-block-size max-cpu-loras "
    "max-cudagraph-capture-size max-log-len max-parallel-loading-workers mm-processor-kwargs "
    "num-gpu-blocks-override pooler-config speculative-config video-pruning-rate"
).split())
# Options that are off where they are left out.
FLAGS = frozenset((
    "aggregate-engine-logging disable-log-stats disable-mm-preprocessor-cache "
    "enable-multimodal-encoder-data-parallel headless"
).split())
# Values of options that take no others.
CHOICES = {
    "all2all-backend": (
        "allgather_reducescatter deepep_high_throughput deepep_low_latency flashinfer_all2allv "
        "naive pplx None"
    ),
    "block-size": "1 8 16 32 64 128 256",
    "chat-template-content-format": "auto openai string",
    "collect-detailed-traces": (
        "all model worker None model,worker model,all worker,model worker,all all,model "
        "all,worker"
    ),
    "convert": "auto classify embed none reward",
    "dtype": "auto bfloat16 float float16 float32 half",
    "expert-placement-strategy": "linear round_robin",
    "kv-cache-dtype": "auto bfloat16 fp8 fp8_ds_mla fp8_e4m3 fp8_e5m2 fp8_inc",
    "kv-offloading-backend": "lmcache native None",
    "logprobs-mode": "processed_logits processed_logprobs raw_logits raw_logprobs",
    "lora-dtype": "auto bfloat16 float16",
    "mamba-cache-dtype": "auto float32",
    "mamba-ssm-cache-dtype": "auto float32",
    "max-lora-rank": "1 8 16 32 64 128 256 320 512",
    "mm-encoder-tp-mode": "data weights",
    "mm-processor-cache-type": "lru shm",
    "prefix-caching-hash-algo": "sha256 sha256_cbor",
    "runner": "auto draft generate pooling",
    "scheduling-policy": "fcfs priority",
    "task": "auto classify draft embed embedding generate reward score transcription None",
    "uvicorn-log-level": "critical debug error info trace warning",
}
