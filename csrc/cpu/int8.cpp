// C entry points of perturb_int8 and update_int8 on the CPU: checks, threads, choice of kernel.
#include <atomic>

#include "tiles.h"

sopt_status sopt_perturb_int8_cpu(const sopt_codes* tensors, int64_t count, const uint64_t* seeds,
                                  const float* coefficients, int64_t terms, sopt_noise kind,
                                  int64_t headroom, const uint64_t* rounding_seed) {
  using namespace sopt;
  const sopt_status status = check_codes(__func__, tensors, count, terms, kind, headroom);
  if (status != SOPT_OK) return status;
  const Sum sum = sum_of(seeds, coefficients, terms);
  return parallel_for_ranges(tensors, count, [&](int64_t i, int64_t begin, int64_t end) {
    kernels().perturb_int8[kind](tensors[i], begin, end, sum, int(headroom), *rounding_seed);
  });
}

sopt_status sopt_update_int8_cpu(const sopt_codes* tensors, int64_t count, const uint64_t* seeds,
                                 const uint64_t* delta_rounding_seeds, const float* coefficients,
                                 int64_t terms, const float* eps, sopt_noise kind, int64_t headroom,
                                 const uint64_t* rounding_seed, int64_t* clamped) {
  using namespace sopt;
  const sopt_status status = check_codes(__func__, tensors, count, terms, kind, headroom);
  if (status != SOPT_OK) return status;
  const CodeUpdate update = {seeds, delta_rounding_seeds, coefficients,  terms,
                             *eps,  int(headroom),        *rounding_seed};
  std::atomic<int64_t> total{0};
  const sopt_status done =
      parallel_for_ranges(tensors, count, [&](int64_t i, int64_t begin, int64_t end) {
        total += kernels().update_int8[kind](tensors[i], begin, end, update);
      });
  *clamped += total;
  return done;
}
