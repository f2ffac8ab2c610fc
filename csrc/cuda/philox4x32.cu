// philox4x32_10 on CUDA: kernel, C entry point.
#include "../common/philox.h"
#include "lane.cuh"
#include "launch.cuh"

namespace sopt {
namespace {

constexpr int kRows = 256;  // per block, one a thread; affects speed only

__global__ void philox4x32_10_kernel(const uint32_t* counters, int64_t n, uint64_t key,
                                     uint32_t* words) {
  const int64_t row = int64_t(blockIdx.x) * kRows + threadIdx.x;
  if (row >= n) return;
  uint64_t c[4];
  for (int j = 0; j < 4; ++j) c[j] = counters[4 * row + j];
  philox_rounds<Lane>(c, round_keys(key), 0);
  for (int j = 0; j < 4; ++j) words[4 * row + j] = uint32_t(c[j]);
}

}  // namespace
}  // namespace sopt

sopt_status sopt_philox4x32_10_cuda(const uint32_t* counters, int64_t n, const uint32_t* key,
                                    uint32_t* words, void* stream) {
  using namespace sopt;
  if (n < 0)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: n must be >= 0, got %" PRId64, __func__, n);
  if (n == 0) return SOPT_OK;
  return launch(__func__, philox4x32_10_kernel, (n + kRows - 1) / kRows, kRows, stream, counters, n,
                key[0] | uint64_t{key[1]} << 32, words);
}
