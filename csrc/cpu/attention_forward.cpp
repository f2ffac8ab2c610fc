// C entry point of attention_forward on the CPU: checks, threads, choice of kernel.
#include <cinttypes>
#include <cmath>

#include "kernels.h"
#include "parallel.h"

sopt_status sopt_attention_forward_cpu(const sopt_rows* query, const sopt_rows* key,
                                       const sopt_rows* value, void* out, int64_t batch,
                                       int64_t heads, int64_t queries, int64_t keys, int64_t size,
                                       float scale, sopt_dtype dtype) {
  using namespace sopt;
  if (dtype != SOPT_FLOAT32 && dtype != SOPT_BFLOAT16)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: dtype must be float32 or bfloat16, got %d",
                     __func__, int(dtype));
  if (batch < 0 || heads < 0 || queries < 0)
    return sopt_fail(SOPT_INVALID_ARGUMENT,
                     "%s: batch, heads and queries must be >= 0, got %" PRId64 ", %" PRId64
                     " and %" PRId64,
                     __func__, batch, heads, queries);
  if (keys < 1)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: keys must be >= 1, got %" PRId64, __func__, keys);
  if (size < 8 || size > SOPT_ATTENTION_MAX_SIZE || size % 8 != 0)
    return sopt_fail(SOPT_INVALID_ARGUMENT,
                     "%s: size must be a multiple of 8 between 8 and %d, got %" PRId64, __func__,
                     SOPT_ATTENTION_MAX_SIZE, size);
  if (!(scale > 0.0f && std::isfinite(scale)))
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: scale must be positive and finite, got %g",
                     __func__, double(scale));
  const float log2_e = 1.44269504f;
  const int64_t block = attention_block(size, kMostQueries);
  const Attention attention{*query, *key, *value,         out,  heads, queries,
                            keys,   size, scale * log2_e, block};
  const int64_t items = batch * heads * ((queries + block - 1) / block);
  return parallel_for(items, 1, [&](int64_t begin, int64_t end) {
    kernels().attention_forward[dtype](attention, begin, end);
  });
}
