// C entry point of add_low_rank on the CPU: checks, threads, choice of kernel.
#include <cinttypes>
#include <cmath>

#include "kernels.h"
#include "parallel.h"

sopt_status sopt_add_low_rank_cpu(void* y, const void* x, const float* a, const float* b,
                                  int64_t rows, int64_t in, int64_t out, int64_t rank, float scale,
                                  sopt_dtype dtype) {
  using namespace sopt;
  if (dtype != SOPT_FLOAT32 && dtype != SOPT_BFLOAT16 && dtype != SOPT_FLOAT16)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: dtype must be a sopt_dtype, got %d", __func__,
                     int(dtype));
  if (rows < 0 || in < 1 || out < 1)
    return sopt_fail(SOPT_INVALID_ARGUMENT,
                     "%s: rows must be >= 0, in and out >= 1, got %" PRId64 ", %" PRId64
                     " and %" PRId64,
                     __func__, rows, in, out);
  if (rank < 1 || rank > SOPT_LOW_RANK_MAX)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: rank must be in [1, %d], got %" PRId64, __func__,
                     SOPT_LOW_RANK_MAX, rank);
  if (!std::isfinite(scale))
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: scale must be finite, got %g", __func__,
                     double(scale));
  const LowRank factors{y, x, a, b, rows, in, out, rank, scale};
  const int64_t blocks = (rows + kLowRankRows - 1) / kLowRankRows;
  return parallel_for(blocks, 4, [&](int64_t begin, int64_t end) {
    kernels().add_low_rank[dtype](factors, begin, end);
  });
}
