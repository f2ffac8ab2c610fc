// C entry point of add_noise on the CPU: checks, threads, choice of kernel.
#include "tiles.h"

sopt_status sopt_add_noise_cpu(const sopt_tensor* tensors, int64_t count, const uint64_t* seeds,
                               const float* coefficients, int64_t terms, sopt_noise kind,
                               float decay, const int64_t* round_after, int64_t rounds,
                               const uint64_t* rounding_seeds) {
  using namespace sopt;
  const sopt_status status =
      check_add_noise(__func__, tensors, count, terms, kind, round_after, rounds);
  if (status != SOPT_OK) return status;
  const Sum sum = {seeds, coefficients, terms, decay, round_after, rounds, rounding_seeds};
  const int64_t grain = kind == SOPT_GAUSSIAN ? kGrain : 4 * kGrain;  // signs: 4 us a kGrain
  return parallel_for_ranges(
      tensors, count,
      [&](int64_t i, int64_t begin, int64_t end) {
        const sopt_tensor& x = tensors[i];
        kernels().add_noise[kind][x.dtype](x.base, x.out, begin, end, x.stream, sum);
      },
      grain);
}
