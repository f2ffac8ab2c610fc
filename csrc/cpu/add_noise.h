// Kernels of add_noise: acc = decay * base; acc = fma(c_k, z_k, acc) for each seed; one rounding.
#pragma once
#include "../common/dtypes.h"
#include "../common/noise.h"
#include "kernels.h"
#include "philox4x32.h"

namespace sopt {
namespace {

// Seeds that one pass over the elements applies while the sums stay in registers.
constexpr int kGroup = 8;

struct Group {
  RoundKeys keys[kGroup];
  float coefficients[kGroup];
  int terms;
  float decay;
};

// Loads count <= kLanes elements, the others zero.
template <class P, class T>
SOPT_INLINE typename P::F load_some(const T* from, int64_t count) {
  if (count >= P::kLanes) return P::load(from);
  T buffer[P::kLanes] = {};
  if (count > 0) memcpy(buffer, from, size_t(count) * sizeof(T));
  return P::load(buffer);
}

template <class P, class T>
SOPT_INLINE void store_some(T* to, int64_t count, typename P::F value) {
  if (count >= P::kLanes) return P::store(to, value);
  T buffer[P::kLanes];
  P::store(buffer, value);
  if (count > 0) memcpy(to, buffer, size_t(count) * sizeof(T));
}

// One block of each lane gives 4 * kLanes elements. `whole` is a constant where it is inlined.
struct Gaussian {
  template <class P, class From, class To>
  SOPT_INLINE void apply(const From* from, To* to, int64_t count, bool whole, uint64_t first,
                         uint64_t stream, const Group& group) {
    using F = typename P::F;
    constexpr int N = P::kLanes;
    F acc[4];
    for (int j = 0; j < 4; ++j)
      acc[j] = (whole ? P::load(from + j * N) : load_some<P>(from + j * N, count - j * N)) *
               group.decay;
    for (int k = 0; k < group.terms; ++k) {
      typename P::U words[4];
      block_words<P>(first, stream, group.keys[k], words);
      F z[4];
      box_muller<P>(words[0], words[1], z[0], z[1]);
      box_muller<P>(words[2], words[3], z[2], z[3]);
      P::transpose(z);
      const F c = P::splat(group.coefficients[k]);
      for (int j = 0; j < 4; ++j) acc[j] = P::fma(c, z[j], acc[j]);
    }
    for (int j = 0; j < 4; ++j)
      whole ? P::store(to + j * N, acc[j]) : store_some<P>(to + j * N, count - j * N, acc[j]);
  }
  static constexpr int kBlock = 4;  // elements
};

// One block of each lane gives 128 * kLanes elements: the words of all seeds first, as bits.
struct Rademacher {
  template <class P, class From, class To>
  SOPT_INLINE void apply(const From* from, To* to, int64_t count, bool whole, uint64_t first,
                         uint64_t stream, const Group& group) {
    using F = typename P::F;
    using U = typename P::U;
    constexpr int N = P::kLanes;
    alignas(64) uint32_t signs[kGroup][4 * N];
    for (int k = 0; k < group.terms; ++k) {
      U words[4];
      block_words<P>(first, stream, group.keys[k], words);
      F rows[4];
      for (int j = 0; j < 4; ++j) rows[j] = P::float_of(words[j]);
      P::transpose(rows);
      memcpy(signs[k], rows, sizeof rows);
    }
    U shift;  // brings the bit of each lane to the sign
    for (int lane = 0; lane < N; ++lane) shift[lane] = uint32_t(31 - lane);
    for (int word = 0; word < 4 * N && (whole || 32 * word < count); ++word)
      for (int part = 0; part < 32 / N; ++part) {
        const int64_t i = 32 * word + part * N;
        F acc = (whole ? P::load(from + i) : load_some<P>(from + i, count - i)) * group.decay;
        for (int k = 0; k < group.terms; ++k) {
          const U bits = U{} + signs[k][word];
          const U sign = (bits << (shift - uint32_t(part * N))) & 0x80000000u;
          // fma(c, +-1, acc) = acc +- c
          acc += P::float_of(P::bits_of(P::splat(group.coefficients[k])) ^ sign);
        }
        whole ? P::store(to + i, acc) : store_some<P>(to + i, count - i, acc);
      }
  }
  static constexpr int kBlock = 128;
};

// Elements begin .. end of one group of seeds; `from` and `to` point to element `begin`.
template <class P, class Noise, class From, class To>
void add_group(const From* from, To* to, int64_t begin, int64_t end, uint64_t stream,
               const Group& group) {
  constexpr int64_t kChunk = Noise::kBlock * P::kLanes;
  int64_t i = begin;
  for (; i + kChunk <= end; i += kChunk, from += kChunk, to += kChunk)
    Noise::template apply<P>(from, to, kChunk, true, uint64_t(i) / Noise::kBlock, stream, group);
  if (i < end)
    Noise::template apply<P>(from, to, end - i, false, uint64_t(i) / Noise::kBlock, stream, group);
}

SOPT_INLINE Group group_of(const Sum& sum, int64_t first) {
  Group group;
  group.terms = sum.terms - first < kGroup ? int(sum.terms - first) : kGroup;
  group.decay = first == 0 ? sum.decay : 1.0f;
  for (int k = 0; k < group.terms; ++k) {
    group.keys[k] = round_keys(sum.seeds[first + k]);
    group.coefficients[k] = sum.coefficients[first + k];
  }
  return group;
}

// Cost: 2 * sizeof(T) bytes of memory per element whatever the number of seeds.
template <class P, class Noise, class T>
void add_noise(const void* base, void* out, int64_t begin, int64_t end, uint64_t stream,
               const Sum& sum) {
  const T* from = static_cast<const T*>(base) + begin;
  T* to = static_cast<T*>(out) + begin;
  if (sum.terms <= kGroup)
    return add_group<P, Noise>(from, to, begin, end, stream, group_of(sum, 0));
  float tile[kTile];  // the sums between groups, in the first-level cache
  for (; begin < end; begin += kTile, from += kTile, to += kTile) {
    const int64_t stop = begin + kTile < end ? begin + kTile : end;
    add_group<P, Noise>(from, tile, begin, stop, stream, group_of(sum, 0));
    int64_t k = kGroup;
    for (; k + kGroup < sum.terms; k += kGroup)
      add_group<P, Noise>(tile, tile, begin, stop, stream, group_of(sum, k));
    add_group<P, Noise>(tile, to, begin, stop, stream, group_of(sum, k));
  }
}

}  // namespace
}  // namespace sopt
