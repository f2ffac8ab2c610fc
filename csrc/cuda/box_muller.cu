// box_muller on CUDA: kernel, C entry point.
#include "../common/noise.h"
#include "lane.cuh"
#include "launch.cuh"

namespace sopt {
namespace {

constexpr int kPairs = 256;  // per block, one a thread; affects speed only

__global__ void box_muller_kernel(const uint32_t* words, int64_t pairs, float* samples) {
  const int64_t i = int64_t(blockIdx.x) * kPairs + threadIdx.x;
  if (i >= pairs) return;
  box_muller<Lane>(words[2 * i], words[2 * i + 1], samples[2 * i], samples[2 * i + 1]);
}

}  // namespace
}  // namespace sopt

sopt_status sopt_box_muller_cuda(const uint32_t* words, int64_t pairs, float* samples,
                                 void* stream) {
  using namespace sopt;
  if (pairs < 0)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: pairs must be >= 0, got %" PRId64, __func__,
                     pairs);
  if (pairs == 0) return SOPT_OK;
  return launch(__func__, box_muller_kernel, (pairs + kPairs - 1) / kPairs, kPairs, stream, words,
                pairs, samples);
}
