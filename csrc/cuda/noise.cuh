// Noise of a thread's share of a tile: use(i, z) for each of its elements, i a constant.
#pragma once
#include "../common/noise.h"
#include "../common/philox.h"
#include "lane.cuh"
#include "tile.cuh"

namespace sopt {

struct Gaussian {
  // A block of words at a time, 4 samples: 48 instructions a sample (sm_90, nvcc 13.0, counted in
  // the machine code), so that in 16-bit dtypes arithmetic limits the speed, not memory.
  template <int V, class Use>
  SOPT_INLINE void samples(const Share<V>& share, uint64_t stream, const RoundKeys& keys, Use use) {
    const uint64_t first = uint64_t(share.first) / 4;
    SOPT_UNROLL
    for (int i = 0; i < kShare; i += 4) {
      const int offset = i / V * V + i % V / 4;  // of the block
      uint64_t w[4];
      // A tile is whole counter blocks from a multiple of its size on: the low word cannot carry.
      const uint32_t low = uint32_t(first) + uint32_t(offset);
      philox4x32_10<Lane>(Lane::multiply_wide(low, kPhilox0), uint32_t(first >> 32), stream, keys,
                          w);
      float z0, z1, z2, z3;
      box_muller<Lane>(uint32_t(w[0]), uint32_t(w[1]), z0, z1);
      box_muller<Lane>(uint32_t(w[2]), uint32_t(w[3]), z2, z3);
      use(i, z0);
      use(i + 1, z1);
      use(i + 2, z2);
      use(i + 3, z3);
    }
  }
};

struct Rademacher {
  // The four threads of 128 elements compute the same block: 7 instructions a sample, counted as
  // above, of which the generator is 3.
  template <int V, class Use>
  SOPT_INLINE void samples(const Share<V>& share, uint64_t stream, const RoundKeys& keys, Use use) {
    static_assert(V <= 8, "the bits of an access of four threads must lie in one word");
    const uint64_t block = uint64_t(share.first) / 128;
    uint64_t w[4];
    philox4x32_10<Lane>(Lane::multiply_wide(block, kPhilox0), uint32_t(block >> 32), stream, keys,
                        w);
    const uint32_t shift = uint32_t(share.first) % 32;  // of the first access, the others agree
    uint32_t bits[4];
    SOPT_UNROLL
    for (int j = 0; j < 4; ++j) bits[j] = uint32_t(w[j]) >> shift;
    SOPT_UNROLL
    for (int i = 0; i < kShare; ++i) {
      const int position = i / V * V * 4 + i % V;  // in the 128, but for the shift
      const uint32_t sign = bits[position / 32] << (31 - position % 32) & 0x80000000u;
      use(i, float_of(sign | 0x3F800000u));
    }
  }
};

}  // namespace sopt
