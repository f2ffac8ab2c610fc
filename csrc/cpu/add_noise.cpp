// C entry point of add_noise on the CPU: checks, threads, choice of kernel.
#include <cinttypes>

#include "kernels.h"
#include "parallel.h"

namespace sopt {
namespace {

constexpr int64_t kGrain = 16;  // tiles per task, 32Ki elements; affects speed only

int64_t tiles_of(const sopt_tensor& tensor) { return (tensor.numel + kTile - 1) / kTile; }

// Tiles [lo, hi) of all tensors, counted one tensor after the other.
void add_noise_to_tiles(const sopt_tensor* tensor, int64_t lo, int64_t hi, sopt_noise kind,
                        const Sum& sum) {
  for (; hi > 0; ++tensor) {
    const int64_t tiles = tiles_of(*tensor);
    if (lo < tiles) {
      const int64_t end = hi < tiles ? hi * kTile : tensor->numel;
      kernels().add_noise[kind][tensor->dtype](tensor->base, tensor->out, lo * kTile, end,
                                               tensor->stream, sum);
    }
    lo = lo > tiles ? lo - tiles : 0;
    hi -= tiles;
  }
}

}  // namespace
}  // namespace sopt

sopt_status sopt_add_noise_cpu(const sopt_tensor* tensors, int64_t count, const uint64_t* seeds,
                               const float* coefficients, int64_t terms, sopt_noise kind,
                               float decay) {
  using namespace sopt;
  if (count < 0)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: count must be >= 0, got %" PRId64, __func__,
                     count);
  if (terms < 0)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: terms must be >= 0, got %" PRId64, __func__,
                     terms);
  if (kind != SOPT_GAUSSIAN && kind != SOPT_RADEMACHER)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: unknown kind %d", __func__, int(kind));
  int64_t tiles = 0;
  for (int64_t i = 0; i < count; ++i) {
    const sopt_tensor& tensor = tensors[i];
    if (tensor.numel < 0)
      return sopt_fail(SOPT_INVALID_ARGUMENT,
                       "%s: numel of tensor %" PRId64 " must be >= 0, got %" PRId64, __func__, i,
                       tensor.numel);
    if (tensor.dtype < SOPT_FLOAT32 || tensor.dtype > SOPT_FLOAT16)
      return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: unknown dtype %" PRId64 " of tensor %" PRId64,
                       __func__, tensor.dtype, i);
    tiles += tiles_of(tensor);
  }
  const Sum sum = {seeds, coefficients, terms, decay};
  return parallel_for(tiles, kGrain, [&](int64_t lo, int64_t hi) {
    add_noise_to_tiles(tensors, lo, hi, kind, sum);
  });
}
