// Philox4x32-10 counter-based generator, written once over a type of lanes.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11.
// Checked against the published known-answer vectors in tests/test_known_answers.py.
#pragma once
#include "portable.h"

namespace sopt {

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

// Ten rounds on a counter, in place. P::W holds one 32-bit word in the low half of each 64-bit
// lane; the high halves are anything, before and after: products read the low halves only, and
// a round then needs no masks and no moves between lanes.
template <class P>
SOPT_INLINE void philox4x32_10(typename P::W c[4], const RoundKeys& keys) {
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const typename P::W p0 = P::multiply_wide(c[0], 0xD2511F53u);
    const typename P::W p1 = P::multiply_wide(c[2], 0xCD9E8D57u);
    c[0] = P::xor3(p1 >> 32, c[1], keys.low[round]);
    c[2] = P::xor3(p0 >> 32, c[3], keys.high[round]);
    c[1] = p1;
    c[3] = p0;
  }
}

}  // namespace sopt
