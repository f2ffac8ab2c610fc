// C entry point of add_noise on the CPU: checks, threads, choice of kernel.
#include "tiles.h"

sopt_status sopt_add_noise_cpu(const sopt_tensor* tensors, int64_t count, const uint64_t* seeds,
                               const float* coefficients, int64_t terms, sopt_noise kind,
                               float decay, const int64_t* round_after, int64_t rounds,
                               const uint64_t* rounding_seeds) {
  using namespace sopt;
  sopt_status status = check_list(__func__, tensors, count, terms, kind);
  if (status == SOPT_OK) status = check_dtypes(__func__, tensors, count);
  if (status != SOPT_OK) return status;
  for (int64_t i = 0, last = 0; i < rounds; last = round_after[i++])
    if (round_after[i] <= last || round_after[i] >= terms)
      return sopt_fail(SOPT_INVALID_ARGUMENT,
                       "%s: round_after must increase and lie between 0 and %" PRId64
                       ", got %" PRId64 " at %" PRId64,
                       __func__, terms, round_after[i], i);
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
