// Random numbers of a thread's share of a tile, four consecutive elements at a time: each type has
// a member four(i, x) for the elements i .. i + 3 of the share, i a constant multiple of four.
#pragma once
#include "../common/noise.h"
#include "../common/philox.h"
#include "lane.cuh"
#include "tile.cuh"

namespace sopt {

// The words of the generator itself: word i % 4 of block i / 4.
template <int V>
struct Words {
  uint64_t stream, first;  // the block of element 0
  RoundKeys keys;

  __device__ Words(const Share<V>& share, uint64_t stream, uint64_t seed)
      : stream(stream), first(uint64_t(share.first) / 4), keys(round_keys(seed)) {}

  __device__ __forceinline__ void four(int i, uint32_t (&words)[4]) const {
    const int offset = i / V * V + i % V / 4;  // of the block
    uint64_t w[4];
    // A tile is whole counter blocks from a multiple of its size on: the low word cannot carry.
    const uint32_t low = uint32_t(first) + uint32_t(offset);
    philox4x32_10<Lane>(Lane::multiply_wide(low, kPhilox0), uint32_t(first >> 32), stream, keys, w);
    SOPT_UNROLL
    for (int j = 0; j < 4; ++j) words[j] = uint32_t(w[j]);
  }
};

// 48 instructions a sample (sm_90, nvcc 13.0, counted in the machine code), so that in 16-bit
// dtypes arithmetic limits the speed, not memory.
template <int V>
struct Gaussian : Words<V> {
  using Words<V>::Words;

  __device__ __forceinline__ void four(int i, float (&z)[4]) const {
    uint32_t words[4];
    Words<V>::four(i, words);
    box_muller<Lane>(words[0], words[1], z[0], z[1]);
    box_muller<Lane>(words[2], words[3], z[2], z[3]);
  }
};

// The four threads of 128 elements compute the same block: 7 instructions a sample, counted as
// above, of which the generator is 3.
template <int V>
struct Rademacher {
  static_assert(V <= 8, "the bits of an access of four threads must lie in one word");
  uint32_t bits[4];

  __device__ Rademacher(const Share<V>& share, uint64_t stream, uint64_t seed) {
    const uint64_t block = uint64_t(share.first) / 128;
    uint64_t w[4];
    philox4x32_10<Lane>(Lane::multiply_wide(block, kPhilox0), uint32_t(block >> 32), stream,
                        round_keys(seed), w);
    const uint32_t shift = uint32_t(share.first) % 32;  // of the first access, the others agree
    SOPT_UNROLL
    for (int j = 0; j < 4; ++j) bits[j] = uint32_t(w[j]) >> shift;
  }

  __device__ __forceinline__ void four(int i, float (&z)[4]) const {
    SOPT_UNROLL
    for (int j = 0; j < 4; ++j) {
      const int position = i / V * V * 4 + i % V + j;  // in the 128, but for the shift
      const uint32_t sign = bits[position / 32] << (31 - position % 32) & 0x80000000u;
      z[j] = float_of(sign | 0x3F800000u);
    }
  }
};

// sum[i] = fma(coefficient, z_i, sum[i]) for the whole share.
template <int V, class Noise>
SOPT_INLINE void add_scaled(const Noise& noise, float coefficient, float (&sum)[kShare]) {
  SOPT_UNROLL
  for (int i = 0; i < kShare; i += 4) {
    float z[4];
    noise.four(i, z);
    SOPT_UNROLL
    for (int j = 0; j < 4; ++j) sum[i + j] = Lane::fma(coefficient, z[j], sum[i + j]);
  }
}

}  // namespace sopt
