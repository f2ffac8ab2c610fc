// The CPU kernels of one instruction-set level, as a table of function pointers.
#pragma once
#include <cstdint>

namespace sopt {

// sum_k coefficients[k] z(seeds[k]), added to decay times what was there.
struct Sum {
  const uint64_t* seeds;
  const float* coefficients;
  int64_t terms;
  float decay;
};

// Ranges of elements that kernels are called on begin at a multiple of this: a whole number of
// counter blocks of either kind, for vectors of any length.
constexpr int64_t kTile = 2048;

struct Kernels {
  // Elements [begin, end) of one tensor; by kind and dtype.
  void (*add_noise[2][3])(const void* base, void* out, int64_t begin, int64_t end, uint64_t stream,
                          const Sum& sum);
  void (*philox4x32_10)(const uint32_t* counters, int64_t n, uint64_t key, uint32_t* words);
  void (*box_muller)(const uint32_t* words, int64_t pairs, float* samples);
};

// Each is defined by one compilation of kernels.cpp.
extern const Kernels kernels_sse42, kernels_avx2, kernels_avx512, kernels_neon, kernels_generic;

// Those of the level in use.
const Kernels& kernels();

}  // namespace sopt
