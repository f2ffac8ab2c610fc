// What one launch works on, passed by value: the tensors of a list and the terms of the sum.
//
// The driver copies the arguments of a kernel at the launch, and into a CUDA graph at its capture.
// So there is no table in device memory to allocate, to fill before the first call, to keep alive
// for graphs, or to order between streams.
#pragma once
#include <cstdint>

#include "sopt.h"
#include "tile.cuh"

namespace sopt {

struct Entry {
  void* out;
  const void* base;
  int64_t numel;
  uint64_t stream;
  uint32_t first_tile;  // in this launch
  uint32_t dtype;
};

template <int kTensors, int kTerms>
struct Work {
  static constexpr int kMaxTensors = kTensors, kMaxTerms = kTerms;
  Entry tensors[kTensors];
  uint64_t seeds[kTerms];
  float coefficients[kTerms];
  const uint64_t* device_seeds;  // in place of `seeds`, where not null; `coefficients` likewise
  const float* device_coefficients;
  int64_t terms;
  int32_t count;
  float decay;

  __device__ uint64_t seed(int64_t k) const { return device_seeds ? device_seeds[k] : seeds[k]; }
  __device__ float coefficient(int64_t k) const {
    return device_coefficients ? device_coefficients[k] : coefficients[k];
  }
  // The tensor that has the tile: the last one whose first tile is not after it.
  __device__ const Entry& tensor_of(uint32_t tile) const {
    int low = 0, high = count;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (tensors[middle].first_tile <= tile ? low : high) = middle;
    }
    return tensors[low];
  }
};

// Most launches are of the first kind; a kernel has 32,764 bytes of arguments (CUDA 12.1 or newer).
using LittleWork = Work<16, 16>;
using MuchWork = Work<512, SOPT_MAX_HOST_TERMS>;
static_assert(sizeof(MuchWork) <= 32764, "the arguments of a kernel are limited");

}  // namespace sopt
