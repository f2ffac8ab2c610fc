// C entry point of restore_accumulate on the CPU: checks, threads, choice of kernels.
#include "tiles.h"

sopt_status sopt_restore_accumulate_cpu(const sopt_tensor* params, const sopt_tensor* grads,
                                        int64_t count, const uint64_t* seed,
                                        const float* restore_coefficient,
                                        const float* grad_coefficient, sopt_noise kind) {
  using namespace sopt;
  const sopt_status status = check_restore_accumulate(__func__, params, grads, count, kind);
  if (status != SOPT_OK) return status;
  return parallel_for_ranges(params, count, [&](int64_t i, int64_t begin, int64_t end) {
    const sopt_tensor &p = params[i], &g = grads[i];
    const Kernels& table = kernels();
    alignas(64) float z[kTile];
    for (; begin < end; begin += kTile) {
      const int64_t stop = begin + kTile < end ? begin + kTile : end;
      table.noise_tile[kind](z, begin, stop, p.stream, *seed);
      table.add_scaled[p.dtype](p.base, p.out, begin, stop, z, *restore_coefficient);
      table.add_scaled[g.dtype](g.base, g.out, begin, stop, z, *grad_coefficient);
    }
  });
}
