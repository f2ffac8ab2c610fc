// Kernels of add_noise: acc = decay * base; acc = fma(c_k, z_k, acc) for each seed; one rounding.
#pragma once
#include "../common/noise.h"
#include "kernels.h"
#include "rounding.h"

namespace sopt {
namespace {

// Seeds that are applied together while the sums stay in registers.
constexpr int kMaxGroup = 8;

struct Group {
  RoundKeys keys[kMaxGroup];
  float coefficients[kMaxGroup];
  int terms;
  float decay;
};

// Four packs of 64-bit lanes at a time, of which each lane gives a block of 4 elements. One seed at
// a time: the arithmetic takes so long that sums in the first-level cache cost nothing, and with no
// loop over seeds inside, its constants stay in registers.
//
// Of 128 samples on Zen 4, 416 vector instructions of 512 bits take 261 cycles. It starts two a
// cycle at best, 208; as many independent ones of the same kinds take 213. The multiplications,
// integer and floating, share half of its units: 196. By hand, in instructions of fixed order
// without spills: 255; with whole words in 32-bit lanes: 258; in 256-bit instructions: 299.
struct Gaussian {
  static constexpr int kGroup = 1;

  template <class P>
  using Four = Twice<Twice<P>>;

  // The elements of the words given; count of them if not `whole`. Both flags are constants when
  // inlined.
  template <class P, class From, class To>
  SOPT_INLINE void apply(const From* from, To* to, int64_t count, bool whole, bool decays,
                         typename Four<P>::U even, typename Four<P>::U odd, const Group& group) {
    using F = typename P::F;
    constexpr int N = P::kLanes;
    typename Four<P>::F cosines, sines;
    box_muller<Four<P>>(even, odd, cosines, sines);
    for_each_pack<P>(cosines, sines, [&](int j, F z) SOPT_LAMBDA {
      F acc = whole ? P::load(from + j * N) : load_some<P>(from + j * N, count - j * N);
      if (decays) acc = acc * group.decay;
      acc = P::fma(P::splat(group.coefficients[0]), z, acc);
      whole ? P::store(to + j * N, acc) : store_some<P>(to + j * N, count - j * N, acc);
    });
  }

  // The words of the next packs are computed beside the samples of these: the integer
  // multiplications of the one fill the gaps in the polynomials of the other.
  template <class P, class From, class To>
  SOPT_INLINE void loop(const From* from, To* to, int64_t begin, int64_t end, bool decays,
                        uint64_t stream, const Group& group) {
    constexpr int64_t kChunk = 8 * P::kLanes;
    typename Four<P>::U even, odd, next_even, next_odd;
    block_words<Four<P>>(uint64_t(begin) / 4, stream, group.keys[0], even, odd);
    for (; begin + kChunk <= end; begin += kChunk, from += kChunk, to += kChunk) {
      block_words<Four<P>>(uint64_t(begin + kChunk) / 4, stream, group.keys[0], next_even,
                           next_odd);
      apply<P>(from, to, kChunk, true, decays, even, odd, group);
      even = next_even;
      odd = next_odd;
    }
    if (begin < end) apply<P>(from, to, end - begin, false, decays, even, odd, group);
  }
};

// One block of each lane gives 128 * kLanes elements: the words of all seeds first, as bits.
struct Rademacher {
  static constexpr int kGroup = kMaxGroup;

  template <class P, class From, class To>
  SOPT_INLINE void apply(const From* from, To* to, int64_t count, bool whole, bool decays,
                         uint64_t first, uint64_t stream, const Group& group) {
    using F = typename P::F;
    constexpr int N = P::kLanes;
    alignas(64) uint32_t signs[kGroup][4 * N];
    for (int k = 0; k < group.terms; ++k) {
      typename Twice<P>::U even, odd;
      block_words<Twice<P>>(first, stream, group.keys[k], even, odd);
      for_each_pack<P>(Twice<P>::float_of(even), Twice<P>::float_of(odd),
                       [&](int j, F words)
                           SOPT_LAMBDA { memcpy(signs[k] + j * N, &words, sizeof words); });
    }
    for (int word = 0; word < 4 * N && (whole || 32 * word < count); ++word) {
      const int64_t i = 32 * word;
      F acc[32 / N];
      for (int part = 0; part < 32 / N; ++part) {
        const int64_t j = i + part * N;
        acc[part] = whole ? P::load(from + j) : load_some<P>(from + j, count - j);
        if (decays) acc[part] = acc[part] * group.decay;
      }
      for (int k = 0; k < group.terms; ++k) {
        const F c = P::splat(group.coefficients[k]);
#pragma GCC unroll 8
        for (int part = 0; part < 32 / N; ++part)  // fma(c, +-1, acc) = acc +- c
          acc[part] += P::negate_where(c, signs[k][word], part);
      }
      for (int part = 0; part < 32 / N; ++part) {
        const int64_t j = i + part * N;
        whole ? P::store(to + j, acc[part]) : store_some<P>(to + j, count - j, acc[part]);
      }
    }
  }

  template <class P, class From, class To>
  SOPT_INLINE void loop(const From* from, To* to, int64_t begin, int64_t end, bool decays,
                        uint64_t stream, const Group& group) {
    constexpr int64_t kChunk = 128 * P::kLanes;
    for (; begin + kChunk <= end; begin += kChunk, from += kChunk, to += kChunk)
      apply<P>(from, to, kChunk, true, decays, uint64_t(begin) / 128, stream, group);
    if (begin < end)
      apply<P>(from, to, end - begin, false, decays, uint64_t(begin) / 128, stream, group);
  }
};

template <class P, class Noise, class From, class To>
[[gnu::noinline]] void add(const From* from, To* to, int64_t begin, int64_t end, uint64_t stream,
                           const Group& group) {
  if (group.decay == 1.0f)
    Noise::template loop<P>(from, to, begin, end, false, stream, group);
  else
    Noise::template loop<P>(from, to, begin, end, true, stream, group);
}

SOPT_INLINE Group group_of(const Sum& sum, int64_t first, int64_t last, float decay) {
  Group group;
  group.terms = int(last - first);
  group.decay = decay;
  for (int k = 0; k < group.terms; ++k) {
    group.keys[k] = round_keys(sum.seeds[first + k]);
    group.coefficients[k] = sum.coefficients[first + k];
  }
  return group;
}

// to = decay * from + terms [first, last), rounded to nearest, or as `rounding_seed` says. Of at
// most one tile of elements if they are more than a group, or if there is a rounding seed.
template <class P, class Noise, class From, class To>
SOPT_INLINE void add_terms(const From* from, To* to, int64_t begin, int64_t end, uint64_t stream,
                           const Sum& sum, int64_t first, int64_t last,
                           const uint64_t* rounding_seed) {
  constexpr int64_t K = Noise::kGroup;
  if (rounding_seed == nullptr && last - first <= K) {
    const Group group = group_of(sum, first, last, sum.decay);
    return last > first ? add<P, Noise>(from, to, begin, end, stream, group)
                        : add<P, Rademacher>(from, to, begin, end, stream, group);  // decay alone
  }
  alignas(64) float tile[kTile];  // the sums between groups, in the first-level cache
  int64_t k = first + K < last ? first + K : last;
  const Group group = group_of(sum, first, k, sum.decay);
  if (k > first)
    add<P, Noise>(from, tile, begin, end, stream, group);
  else
    add<P, Rademacher>(from, tile, begin, end, stream, group);
  for (; k + K < last; k += K)
    add<P, Noise>(tile, tile, begin, end, stream, group_of(sum, k, k + K, 1.0f));
  if (rounding_seed == nullptr)
    return add<P, Noise>(tile, to, begin, end, stream, group_of(sum, k, last, 1.0f));
  if (k < last) add<P, Noise>(tile, tile, begin, end, stream, group_of(sum, k, last, 1.0f));
  if constexpr (sizeof(To) < sizeof(float))
    round_tile<P>(tile, to, begin, end, stream, *rounding_seed);
}

// Cost: 2 * sizeof(T) bytes of memory per element whatever the number of seeds.
template <class P, class Noise, class T>
void add_noise(const void* base, void* out, int64_t begin, int64_t end, uint64_t stream,
               const Sum& sum) {
  const T* from = static_cast<const T*>(base) + begin;
  T* to = static_cast<T*>(out) + begin;
  const uint64_t* rounding = sizeof(T) < sizeof(float) ? sum.rounding_seeds : nullptr;
  if (sum.rounds == 0 && rounding == nullptr && sum.terms <= Noise::kGroup)
    return add_terms<P, Noise>(from, to, begin, end, stream, sum, 0, sum.terms, nullptr);
  for (; begin < end; begin += kTile, from += kTile, to += kTile) {
    const int64_t stop = begin + kTile < end ? begin + kTile : end;
    const T* source = from;
    for (int64_t r = 0, first = 0; r <= sum.rounds; ++r) {
      const int64_t last = r < sum.rounds ? sum.round_after[r] : sum.terms;
      add_terms<P, Noise>(source, to, begin, stop, stream, sum, first, last,
                          rounding == nullptr ? nullptr : rounding + r);
      source = to;
      first = last;
    }
  }
}

}  // namespace
}  // namespace sopt
