// C entry point of box_muller on the CPU.
#include <cinttypes>

#include "kernels.h"
#include "sopt.h"

sopt_status sopt_box_muller_cpu(const uint32_t* words, int64_t pairs, float* samples) {
  if (pairs < 0)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: pairs must be >= 0, got %" PRId64, __func__,
                     pairs);
  sopt::kernels().box_muller(words, pairs, samples);
  return SOPT_OK;
}
