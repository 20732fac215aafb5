/* The plain C interface of libvllm_kepler.so.
 *
 * Every launcher returns a cudaError_t (0: launched; cudaErrorInvalidValue: a size, stride or type that it does not
 * take, nothing launched), works on the stream given (a cudaStream_t as void*), allocates nothing and never
 * synchronizes: fit for stream capture. Pointers are device memory unless said otherwise. Strides are in elements.
 * Activations are float32. Cache dtypes: 0 float32, 1 float16. Vector loads are used where the addresses allow them.
 *
 * KV cache: keys and values are two tensors [num_blocks, num_kv_heads, block_size, head_size]. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { KEPLER_SILU = 0, KEPLER_GELU = 1, KEPLER_GELU_TANH = 2, KEPLER_GELU_QUICK = 3 };

const char* kepler_error_text(int code);
const char* kepler_version(void);
/* Architectures built in, separated by spaces: machine code as sm_NN, PTX as compute_NN. */
const char* kepler_architectures(void);

/* out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight; rows of hidden elements; out may be x. Row r of x begins at
 * (r / heads) * x_stride + (r % heads) * head_stride: heads of a token may lie among others. */
int kepler_rms_norm(float* out, const float* x, const float* weight, float eps, int rows, int hidden,
                    long long out_stride, long long x_stride, int heads, long long head_stride, void* stream);
/* residual += x, then x = rms_norm(residual); both in place. */
int kepler_fused_add_rms_norm(float* x, float* residual, const float* weight, float eps, int rows, int hidden,
                              long long x_stride, long long residual_stride, void* stream);

/* Rotates the first rot_dim elements of each head in place. positions: int64 [tokens]; cos_sin: float32
 * [max_position, rot_dim], cosines in the first half. key may be null. neox: 1 pairs (i, i + rot_dim / 2),
 * 0 pairs (2i, 2i + 1). */
int kepler_rotary_embedding(const int64_t* positions, float* query, float* key, const float* cos_sin, int tokens,
                            int num_heads, int num_kv_heads, int head_size, int rot_dim, int neox,
                            long long query_stride, long long key_stride, void* stream);

/* out[r, i] = f(x[r, i]). f is one of the KEPLER_ names; gelu_new and gelu_fast are KEPLER_GELU_TANH. */
int kepler_activation(int function, float* out, const float* x, int rows, int size, long long out_stride,
                      long long x_stride, void* stream);
/* out[r, i] = f(x[r, i]) * x[r, size + i]. */
int kepler_activation_and_mul(int function, float* out, const float* x, int rows, int size, long long out_stride,
                              long long x_stride, void* stream);

/* key, value: [tokens, num_kv_heads, head_size], heads dense; slot_mapping: int64 [tokens], below 0: not stored. */
int kepler_reshape_and_cache(const float* key, const float* value, void* key_cache, void* value_cache,
                             int cache_dtype, const int64_t* slot_mapping, int tokens, int num_kv_heads,
                             int head_size, int block_size, long long key_stride, long long value_stride,
                             void* stream);
/* caches: device array of num_caches base addresses; pairs: int64 [num_pairs, 2] (source, destination), device; no
 * block may be both. block_bytes: a multiple of 16. */
int kepler_copy_blocks(void* const* caches, int num_caches, const int64_t* pairs, int num_pairs, size_t block_bytes,
                       void* stream);
/* pairs: int64 [num_pairs, 2] in host memory. source and destination: device or pinned host memory. */
int kepler_swap_blocks(const void* source, void* destination, const int64_t* pairs, int num_pairs,
                       size_t block_bytes, void* stream);

/* Softmax over num_experts (1..512) logits, then the top_k largest, the lower expert first among equals. */
int kepler_topk_softmax(float* weights, int* experts, const float* logits, int tokens, int num_experts, int top_k,
                        int renormalize, void* stream);
/* Sorts num_rows (token, choice) rows by expert, each padded with num_rows to a multiple of tile (2 .. 128).
 * sorted_rows: int32 of kepler_moe_capacity elements; tile_experts: int32 [capacity / tile]; num_sorted: int32 [1]. */
int kepler_moe_capacity(int num_rows, int num_experts, int tile);
int kepler_moe_sort(int* sorted_rows, int* tile_experts, int* num_sorted, const int* experts, int num_rows,
                    int num_experts, int tile, void* stream);
/* out[r] = x[r / rows_per_x] · weight[expert of r]^T (· row_scales[r] unless null). out: [num_rows, n]; x: [.., k];
 * weight: [num_experts, n, k] in float32 or float16 by bits (32, 16); k a multiple of 4, addresses 16-byte aligned;
 * tile: 16 or 64. */
int kepler_moe_product(float* out, const float* x, const void* weight, int bits, const float* row_scales,
                       const int* sorted_rows, const int* tile_experts, const int* num_sorted, int num_rows,
                       int num_experts, int n, int k, int rows_per_x, int tile, void* stream);
/* The same for tiles of 1, 2 or 4 rows of float16, k a multiple of 8, or of codes by bits (8, 4), k a multiple of 32;
 * scales, zeros, unit and group are those of codes, as kepler_linear_packed has them. Tiles of 1 are not sorted:
 * tile_experts holds each row's expert, sorted_rows and num_sorted are null. */
int kepler_moe_linear(float* out, const float* x, const void* weight, const void* scales, const void* zeros,
                      float unit, int bits, int group, const float* row_scales, const int* sorted_rows,
                      const int* tile_experts, const int* num_sorted, int num_rows, int num_experts, int n, int k,
                      int rows_per_x, int tile, void* stream);
/* The same for more rows, by the kernels of kepler_linear_tiled: tile, blocks and sums are those of that one. */
int kepler_moe_tiled(float* out, float* sums, const float* x, const void* weight, const void* scales,
                     const void* zeros, float unit, int bits, int group, const float* row_scales,
                     const int* sorted_rows, const int* tile_experts, const int* num_sorted, int num_rows,
                     int num_experts, int n, int k, int rows_per_x, int tile, int blocks, void* stream);

/* out[r] = x[r] · weight^T. out: [rows, n]; x: [rows, k], rows 1..4, 16-byte aligned; linear.cu says more.
 * weight: float16 [n, k], k a multiple of 8, 16-byte aligned. */
int kepler_linear_half(float* out, const float* x, const void* weight, int rows, int n, int k, void* stream);
/* The weight is scale · unit · (code - zero), scale and zero of the row's group of columns. codes: [n, k] of 4 or 8
 * bits, the first column in the lowest bits, k a multiple of 32, 16-byte aligned; scales, zeros: float16
 * [n, k / group], no zeros: all 2^(bits - 1); group: a power of two from 32 on that divides k, or k. rows: up to 4, and
 * up to 8 with groups of 64 and more. */
int kepler_linear_packed(float* out, const float* x, const void* codes, const void* scales, const void* zeros,
                         float unit, int bits, int rows, int n, int k, int group, void* stream);
/* The same for any number of rows; bits 16: float16. tile: rows of x a block, 8, 12, 16, 20, 24, 28, 32,
 * 36 (linear_direct.cuh), 40, 44, 48, 52, 56, 64, 96 or 128. blocks share the product evenly; sums: float32
 * [2 · blocks, tile, outputs of a tile], 16-byte aligned, for tiles that they share. */
int kepler_linear_tiled(float* out, float* sums, const float* x, const void* weight, const void* scales,
                        const void* zeros, float unit, int bits, int rows, int n, int k, int group, int tile,
                        int blocks, void* stream);
/* Blocks of that kernel that the current GPU holds at once; blocks: host memory. */
int kepler_linear_blocks(int* blocks, int bits, int tile);
/* That weight as float32 [n, k], out 16-byte aligned. */
int kepler_linear_unpack(float* out, const void* codes, const void* scales, const void* zeros, float unit, int bits,
                         int n, int k, int group, void* stream);

/* attention_decode.cu and attention_prefill.cu say more. */
int kepler_attention_decode_workspace(int num_seqs, int num_heads, int num_kv_heads, int head_size, int max_seq_len,
                                      size_t* bytes);
int kepler_attention_decode(void* out, const void* query, long long out_stride, long long query_stride, int io_dtype,
                            const void* key_cache, const void* value_cache, int cache_dtype, const int* block_tables,
                            int max_blocks, const int* seq_lens, int num_seqs, int num_heads, int num_kv_heads,
                            int head_size, int block_size, int max_seq_len, float scale, float soft_cap, int window,
                            const float* alibi_slopes, void* workspace, size_t workspace_bytes, void* stream);
int kepler_attention_prefill(void* out, const void* query, long long out_stride, long long query_stride, int io_dtype,
                             const void* key_cache, const void* value_cache, int cache_dtype, const int* block_tables,
                             int max_blocks, const int* query_start_loc, const int* seq_lens, int num_seqs,
                             int max_query_len, int num_heads, int num_kv_heads, int head_size, int block_size,
                             int causal, float scale, float soft_cap, int window, const float* alibi_slopes,
                             void* stream);

#ifdef __cplusplus
}
#endif
