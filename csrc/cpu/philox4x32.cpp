// C entry point of philox4x32_10 on the CPU.
#include <cinttypes>

#include "kernels.h"
#include "sopt.h"

sopt_status sopt_philox4x32_10_cpu(const uint32_t* counters, int64_t n, const uint32_t* key,
                                   uint32_t* words) {
  if (n < 0)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: n must be >= 0, got %" PRId64, __func__, n);
  sopt::kernels().philox4x32_10(counters, n, key[0] | uint64_t{key[1]} << 32, words);
  return SOPT_OK;
}
