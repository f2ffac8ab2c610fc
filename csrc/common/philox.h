// Philox4x32-10 counter-based generator, written once over a type of lanes.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11.
// Checked against the published known-answer vectors in tests/test_known_answers.py.
#pragma once
#include "portable.h"

namespace sopt {

constexpr uint32_t kPhilox0 = 0xD2511F53u, kPhilox1 = 0xCD9E8D57u;

// The keys of the ten rounds, in the low halves: computed once per seed, not once per block.
struct RoundKeys {
  uint64_t low[10], high[10];
};

SOPT_INLINE RoundKeys round_keys(uint64_t seed) {
  RoundKeys keys;
  uint32_t low = uint32_t(seed), high = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round, low += 0x9E3779B9u, high += 0xBB67AE85u) {
    keys.low[round] = low;
    keys.high[round] = high;
  }
  return keys;
}

// The rounds from `begin` on of a counter, in place. P::W holds one 32-bit word in the low half of
// each 64-bit lane; the high halves are anything, before and after: products read the low halves
// only, and a round then needs no masks and no moves between lanes.
template <class P>
SOPT_INLINE void philox_rounds(typename P::W (&c)[4], const RoundKeys& keys, int begin) {
  SOPT_UNROLL
  for (int round = begin; round < 10; ++round) {
    const typename P::W p0 = P::multiply_wide(c[0], kPhilox0);
    const typename P::W p1 = P::multiply_wide(c[2], kPhilox1);
    c[0] = P::xor3(p1 >> 32, c[1], keys.low[round]);
    c[2] = P::xor3(p0 >> 32, c[3], keys.high[round]);
    c[1] = p1;
    c[3] = p0;
  }
}

// The words of the counters (low, high, stream low, stream high), of which `low` alone differs
// between lanes: half of the first two rounds is then the same in all of them. `p0` is
// kPhilox0 * low, which for consecutive counters is a sum.
template <class P>
SOPT_INLINE void philox4x32_10(typename P::W p0, uint32_t high, uint64_t stream,
                               const RoundKeys& keys, typename P::W (&c)[4]) {
  const uint64_t p1 = uint64_t{kPhilox1} * uint32_t(stream);
  const uint64_t c0 = (p1 >> 32) ^ high ^ keys.low[0];
  const uint64_t q0 = uint64_t{kPhilox0} * uint32_t(c0);
  const typename P::W c2 = (p0 >> 32) ^ ((stream >> 32) ^ keys.high[0]);
  const typename P::W q1 = P::multiply_wide(c2, kPhilox1);
  c[0] = (q1 >> 32) ^ (uint32_t(p1) ^ keys.low[1]);
  c[1] = q1;
  c[2] = p0 ^ ((q0 >> 32) ^ keys.high[1]);
  c[3] = P::splat_wide(q0);
  philox_rounds<P>(c, keys, 2);
}

}  // namespace sopt
