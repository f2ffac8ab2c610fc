/* libsopt: zeroth-order kernels behind a plain C interface.
 *
 * Nothing here needs Python or PyTorch. No function allocates, keeps or frees memory of the
 * caller. A tensor is a pointer to its first element and a number of contiguous elements.
 * Functions return SOPT_OK or an error code; sopt_last_error() then explains it. Arguments are
 * checked before anything is written.
 *
 * `*_cpu` functions are in libsopt_cpu and take host pointers. `*_cuda` functions are in
 * libsopt_cuda, which needs libsopt_cpu: they take device pointers where not said otherwise, and
 * launch on a cudaStream_t, `stream`, of the current device, without waiting for anything.
 */
#ifndef SOPT_H
#define SOPT_H

#include <stdint.h>

#if defined(__GNUC__)
#define SOPT_API __attribute__((visibility("default")))
#define SOPT_PRINTF(format, args) __attribute__((__format__(__printf__, format, args)))
#else
#define SOPT_API
#define SOPT_PRINTF(format, args)
#endif

#ifdef __cplusplus
extern "C" {
#define SOPT_INT : int /* so that a caller's wrong value is checked, not undefined */
#else
#define SOPT_INT
#endif

/* Raised whenever a signature, a code or the meaning of an argument changes. */
#define SOPT_ABI_VERSION 6

typedef enum SOPT_INT {
  SOPT_OK = 0,
  SOPT_INVALID_ARGUMENT = 1,
  SOPT_UNSUPPORTED = 2, /* valid, but not on this machine or in this build */
  SOPT_DEVICE_ERROR = 3 /* the device runtime or the host's thread pool failed */
} sopt_status;

typedef enum SOPT_INT { SOPT_FLOAT32 = 0, SOPT_BFLOAT16 = 1, SOPT_FLOAT16 = 2 } sopt_dtype;

/* ---- library -------------------------------------------------------------------------- */

/* SOPT_ABI_VERSION of each library itself; compare them with the header's after loading. */
SOPT_API int sopt_abi_version(void);
SOPT_API int sopt_cuda_abi_version(void);

/* Text of the last failure on this thread, "" before the first. Valid until the next one. */
SOPT_API const char* sopt_last_error(void);

/* Stores a message for sopt_last_error() and returns `status`. For device libraries. */
SOPT_API sopt_status sopt_fail(sopt_status status, const char* format, ...) SOPT_PRINTF(2, 3);

/* ---- CPU ------------------------------------------------------------------------------ */

/* Calls task(lo, hi, context) on disjoint ranges that cover [begin, end), each of at least
 * `grain` items but for the last, from any threads, and waits. Returns 0 on success. */
typedef void (*sopt_task)(int64_t lo, int64_t hi, void* context);
typedef int (*sopt_parallel_for)(int64_t begin, int64_t end, int64_t grain, sopt_task task,
                                 void* context);

/* The host's thread pool. NULL, as at load: run on the calling thread. The library has no
 * threads of its own, so that it never competes with the pool of its host. */
SOPT_API sopt_status sopt_set_parallel_for(sopt_parallel_for parallel_for);

/* Instruction-set level in use: sse42, avx2, avx512, avx512_vnni or avx512_bf16; neon or
 * neon_dot; generic. The best one that the processor has is chosen at load; forcing one is for
 * tests. All levels give the same bits, but for attention, low-rank adapters and int8 layers of
 * elements as they are. */
SOPT_API const char* sopt_cpu_level(void);
SOPT_API sopt_status sopt_set_cpu_level(const char* level);

/* ---- CUDA ----------------------------------------------------------------------------- */

/* Whether this machine's driver can run libsopt_cuda; the other functions do not ask again. */
SOPT_API sopt_status sopt_cuda_check(void);

/* Where an array of numbers lies, of those that may be in either memory. In device memory it is
 * read when the kernel runs: a launch waits for nothing, and a CUDA graph reads it at each replay.
 * What is in host memory has been read on return; where it has one item per term, it may have
 * SOPT_MAX_HOST_TERMS. Lists of tensors are always in host memory; one launch serves up to 512
 * tensors, of any dtypes. */
typedef enum SOPT_INT { SOPT_HOST = 0, SOPT_DEVICE = 1 } sopt_memory;
#define SOPT_MAX_HOST_TERMS 256

/* ---- noise ---------------------------------------------------------------------------- */

/* Noise, version 1: z = noise(seed, stream, index) is a pure function, the same bits on every
 * processor, level, thread count and device. The words of block b are
 *   Philox4x32-10(key = seed, counter = (b low, b high, stream low, stream high)).
 * SOPT_GAUSSIAN: block b gives elements 4b .. 4b + 3 by Box-Muller: words (w0, w1) elements 0
 *   and 1, (w2, w3) elements 2 and 3; u = (w0 + 1/2) 2^-32, a = 2 pi (w1 + 1/2) 2^-32,
 *   z0 = sqrt(-2 ln u) cos a, z1 = sqrt(-2 ln u) sin a, in the float32 arithmetic of
 *   csrc/common/noise.h; within 4 ulp of max(|z|, 2^-10).
 * SOPT_RADEMACHER: block b gives elements 128b .. 128b + 127: -1 where bit i % 32 of word
 *   (i % 128) / 32 is set, else +1. */
typedef enum SOPT_INT { SOPT_GAUSSIAN = 0, SOPT_RADEMACHER = 1 } sopt_noise;

/* words[4 i .. 4 i + 3] = Philox4x32-10(counters[4 i .. 4 i + 3]) under key[0 .. 1], i < n. */
SOPT_API sopt_status sopt_philox4x32_10_cpu(const uint32_t* counters, int64_t n,
                                            const uint32_t* key, uint32_t* words);

/* The same; `key` is in host memory. */
SOPT_API sopt_status sopt_philox4x32_10_cuda(const uint32_t* counters, int64_t n,
                                             const uint32_t* key, uint32_t* words, void* stream);

/* The samples 2 i, 2 i + 1 of SOPT_GAUSSIAN from the words 2 i, 2 i + 1, for i < pairs. */
SOPT_API sopt_status sopt_box_muller_cpu(const uint32_t* words, int64_t pairs, float* samples);
SOPT_API sopt_status sopt_box_muller_cuda(const uint32_t* words, int64_t pairs, float* samples,
                                          void* stream);

/* One tensor of a list. `out` may be `base` itself, but no `out` may overlap anything else. */
typedef struct {
  void* out;
  const void* base;
  int64_t numel;
  uint64_t stream;
  int64_t dtype; /* sopt_dtype */
} sopt_tensor;

/* out = base * decay + sum over k < terms of coefficients[k] z(seeds[k], stream, i), for each
 * element i of each of the `count` tensors: one pass, one read and one write of each element.
 * acc = float32(base) * decay; acc = fma(coefficients[k], z_k, acc) in the order of k; then one
 * rounding to the dtype.
 * round_after: `rounds` increasing counts of terms in [1, terms): after so many, acc is rounded to
 *   the dtype and multiplied by decay again, as if another call went on from there.
 * rounding_seeds: NULL rounds to nearest, ties to even. Else rounds + 1 seeds, one per rounding,
 *   in order, round stochastically: element i takes w = word i % 4 of block i / 4 under that seed
 *   and the tensor's stream, u = (w >> 8) 2^-24, and goes to the neighbour away from zero if and
 *   only if the fraction that is discarded is > u; past the largest finite value, to nearest. */
SOPT_API sopt_status sopt_add_noise_cpu(const sopt_tensor* tensors, int64_t count,
                                        const uint64_t* seeds, const float* coefficients,
                                        int64_t terms, sopt_noise kind, float decay,
                                        const int64_t* round_after, int64_t rounds,
                                        const uint64_t* rounding_seeds);

/* The same bits; `round_after` is in host memory, and a launch serves up to SOPT_MAX_HOST_TERMS
 * roundings. */
SOPT_API sopt_status sopt_add_noise_cuda(const sopt_tensor* tensors, int64_t count,
                                         const uint64_t* seeds, sopt_memory seeds_memory,
                                         const float* coefficients, sopt_memory coefficients_memory,
                                         int64_t terms, sopt_noise kind, float decay,
                                         const int64_t* round_after, int64_t rounds,
                                         const uint64_t* rounding_seeds,
                                         sopt_memory rounding_seeds_memory, void* stream);

/* In one pass over `count` pairs of tensors, with the stream of params and z = z(*seed, stream, i):
 * params: out = fma(*restore_coefficient, z, base); grads: out = fma(*grad_coefficient, z, base);
 * in float32, rounded to the dtype of each, to nearest even. */
SOPT_API sopt_status sopt_restore_accumulate_cpu(const sopt_tensor* params,
                                                 const sopt_tensor* grads, int64_t count,
                                                 const uint64_t* seed,
                                                 const float* restore_coefficient,
                                                 const float* grad_coefficient, sopt_noise kind);
SOPT_API sopt_status sopt_restore_accumulate_cuda(
    const sopt_tensor* params, const sopt_tensor* grads, int64_t count, const uint64_t* seed,
    sopt_memory seed_memory, const float* restore_coefficient,
    sopt_memory restore_coefficient_memory, const float* grad_coefficient,
    sopt_memory grad_coefficient_memory, sopt_noise kind, void* stream);

/* ---- int8 codes ------------------------------------------------------------------------ */

/* One tensor of a list: codes of `rows` equal rows, each with a scale > 0. */
typedef struct {
  int8_t* codes;
  const float* scales;
  int64_t numel;
  int64_t rows;
  uint64_t stream;
} sopt_codes;

/* codes += delta, modulo 256, for each element i of each of the `count` tensors, with
 *   v = (sum over k < terms of coefficients[k] z(seeds[k], stream, i)) / scales[row],
 *   delta = sgn(v) min(floor(|v| + u), headroom), row = i / (numel / rows),
 * the sum by fma in the order of k from 0, a float32 division, and u = (w >> 8) 2^-24 with
 * w = word i % 4 of block i / 4 under *rounding_seed and the stream. So the opposite coefficients
 * undo a call to the last bit, and codes within 127 - headroom never wrap. headroom: 1 .. 64. */
SOPT_API sopt_status sopt_perturb_int8_cpu(const sopt_codes* tensors, int64_t count,
                                           const uint64_t* seeds, const float* coefficients,
                                           int64_t terms, sopt_noise kind, int64_t headroom,
                                           const uint64_t* rounding_seed);
SOPT_API sopt_status sopt_perturb_int8_cuda(const sopt_codes* tensors, int64_t count,
                                            const uint64_t* seeds, sopt_memory seeds_memory,
                                            const float* coefficients,
                                            sopt_memory coefficients_memory, int64_t terms,
                                            sopt_noise kind, int64_t headroom,
                                            const uint64_t* rounding_seed,
                                            sopt_memory rounding_seed_memory, void* stream);

/* codes = clamp(codes + sgn(s) floor(|s| + u), +-(127 - headroom)), with
 *   s = sum over n < terms of coefficients[n] delta_n, by fma in the order of n from 0,
 * where delta_n is what sopt_perturb_int8_cpu adds for the one term (seeds[n], *eps) and the
 * rounding seed delta_rounding_seeds[n], and u is of *rounding_seed. Adds to *clamped how many
 * codes were clamped; without terms, that is all it does. */
SOPT_API sopt_status sopt_update_int8_cpu(const sopt_codes* tensors, int64_t count,
                                          const uint64_t* seeds,
                                          const uint64_t* delta_rounding_seeds,
                                          const float* coefficients, int64_t terms,
                                          const float* eps, sopt_noise kind, int64_t headroom,
                                          const uint64_t* rounding_seed, int64_t* clamped);

/* The same; `clamped` is in device memory. */
SOPT_API sopt_status sopt_update_int8_cuda(
    const sopt_codes* tensors, int64_t count, const uint64_t* seeds, sopt_memory seeds_memory,
    const uint64_t* delta_rounding_seeds, sopt_memory delta_rounding_seeds_memory,
    const float* coefficients, sopt_memory coefficients_memory, int64_t terms, const float* eps,
    sopt_memory eps_memory, sopt_noise kind, int64_t headroom, const uint64_t* rounding_seed,
    sopt_memory rounding_seed_memory, int64_t* clamped, void* stream);

/* ---- attention ------------------------------------------------------------------------- */

/* Rows of elements side by side, `row_stride` elements apart, of each head of each batch. */
typedef struct {
  const void* data;
  int64_t batch_stride;
  int64_t head_stride;
  int64_t row_stride;
} sopt_rows;

/* out = softmax(scale q k^T) v for each head of each batch: `queries` rows of query, `keys` >= 1
 * rows of key and value, all of `size` elements; out is (batch, queries, heads, size), contiguous.
 * The softmax is online over blocks of keys, so no more than 128 scores of a query exist at a time:
 * at most 320 KiB of each thread's stack are used, and nothing else. The order of a sum depends on
 * the level, never on threads.
 * SOPT_FLOAT32: all in float32. SOPT_BFLOAT16: sums, softmax and result in float32, the weights
 *   exp(scale (score - maximum)) rounded to bfloat16 at level avx512_bf16, where the instruction
 *   also takes subnormal numbers as 0; one rounding of the result.
 * scale: positive, finite. size: a multiple of 8, at most SOPT_ATTENTION_MAX_SIZE. */
#define SOPT_ATTENTION_MAX_SIZE 256
SOPT_API sopt_status sopt_attention_forward_cpu(const sopt_rows* query, const sopt_rows* key,
                                                const sopt_rows* value, void* out, int64_t batch,
                                                int64_t heads, int64_t queries, int64_t keys,
                                                int64_t size, float scale, sopt_dtype dtype);

/* ---- low-rank adapters ------------------------------------------------------------------ */

/* y += scale (x a^T) b^T: what LoRA adds to the result of a linear layer. x is (rows, in), y
 * (rows, out), both of `dtype`; a is (rank, in), b (out, rank), float32; all contiguous, and y
 * overlaps nothing. Products and sums are float32, one rounding of each element of y. The order of
 * a sum depends on the level, never on threads. At most 100 KiB of each thread's stack are used,
 * and nothing else.
 * rows >= 0, in and out >= 1, rank in [1, SOPT_LOW_RANK_MAX], scale finite. */
#define SOPT_LOW_RANK_MAX 256
SOPT_API sopt_status sopt_add_low_rank_cpu(void* y, const void* x, const float* a, const float* b,
                                           int64_t rows, int64_t in, int64_t out, int64_t rank,
                                           float scale, sopt_dtype dtype);

/* ---- int8 layers ----------------------------------------------------------------------- */

/* A convolution with int8 codes as its weight: weight = scales[output] * code. A linear layer is
 * one with a kernel of one element, and its rows are the pixels of an image of one row. */
typedef struct {
  const int8_t* codes; /* (outputs, kernel_height, kernel_width, inputs), in [-127, 127] */
  const float* scales; /* (outputs) */
  const float* bias;   /* (outputs), or NULL */
  int64_t outputs;
  int64_t inputs; /* at most SOPT_INT8_MAX_CHANNELS, as outputs */
  int64_t kernel_height;
  int64_t kernel_width;
  int64_t stride;
  int64_t padding; /* of zeros, on all sides */
} sopt_int8_layer;
#define SOPT_INT8_MAX_CHANNELS 65536 /* sums of so many products fit an int32 */

/* Images, strides in elements. */
typedef struct {
  const void* data;
  int64_t batch;
  int64_t height;
  int64_t width;
  int64_t batch_stride;
  int64_t row_stride;
  int64_t column_stride;
  int64_t channel_stride; /* 1 is fast */
} sopt_image;

/* How elements of x meet the codes.
 * SOPT_ELEMENTS_REAL: as they are. Products are summed in float32, at level avx512_bf16 those of
 *   bfloat16 in pairs, by an instruction that takes subnormal numbers as 0. The order of a sum
 *   depends on the level.
 * SOPT_ELEMENTS_INT8: each pixel quantized by a scale of its own, the same bits on all levels. With
 *   m its largest absolute value, element e is q = round(e (127 / m)), ties to even, and
 *     y = bias + scales[output] (sum over elements k of the kernel of (m_k / 127) s_k),
 *   s_k the sum of q times code over the inputs, in integers; y and the sum over k, in row-major
 *   order, by fma in float32. m below 2^-100 counts as 0; results of a pixel that is not finite are
 *   NaN. */
typedef enum SOPT_INT { SOPT_ELEMENTS_REAL = 0, SOPT_ELEMENTS_INT8 = 1 } sopt_elements;

/* The functions below take 64-byte aligned scratch, of as many bytes as these say for the same
 * arguments at the same level: at most an eighth of the layer's weight in float32, or what the
 * smallest tile of one thread needs, or 48 KiB, whichever is most. Nothing else is taken but up to
 * 200 KiB of each thread's stack. -1 where an argument would be refused. */
SOPT_API int64_t sopt_int8_conv2d_scratch_cpu(const sopt_int8_layer* layer, const sopt_image* x,
                                              sopt_dtype dtype, sopt_elements elements,
                                              int64_t threads);
SOPT_API int64_t sopt_int8_conv2d_backward_scratch_cpu(const sopt_int8_layer* layer,
                                                       const sopt_image* gradient, int64_t height,
                                                       int64_t width, sopt_dtype dtype,
                                                       int64_t threads);

/* out = the convolution of x, rounded once to the dtype of x: (batch, out height, out width,
 * outputs), contiguous, with out height = (height + 2 padding - kernel_height) / stride + 1. */
SOPT_API sopt_status sopt_int8_conv2d_cpu(const sopt_int8_layer* layer, const sopt_image* x,
                                          void* out, sopt_dtype dtype, sopt_elements elements,
                                          int64_t threads, void* scratch);

/* The gradient with respect to an input of `height` by `width`: out, (batch, height, width,
 * inputs), contiguous, from that with respect to the result, `gradient`. Elements are real. */
SOPT_API sopt_status sopt_int8_conv2d_backward_cpu(const sopt_int8_layer* layer,
                                                   const sopt_image* gradient, void* out,
                                                   int64_t height, int64_t width, sopt_dtype dtype,
                                                   int64_t threads, void* scratch);

/* The same on a GPU, of tensors there. scratch, for SOPT_ELEMENTS_INT8 alone, 4-byte aligned: for
 * each pixel of x its inputs, rounded up to a multiple of 4, and 4 more bytes. */
SOPT_API sopt_status sopt_int8_conv2d_cuda(const sopt_int8_layer* layer, const sopt_image* x,
                                           void* out, sopt_dtype dtype, sopt_elements elements,
                                           void* scratch, void* stream);
SOPT_API sopt_status sopt_int8_conv2d_backward_cuda(const sopt_int8_layer* layer,
                                                    const sopt_image* gradient, void* out,
                                                    int64_t height, int64_t width, sopt_dtype dtype,
                                                    void* stream);

#ifdef __cplusplus
}
#endif
#endif
