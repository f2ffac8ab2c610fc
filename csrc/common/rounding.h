// Stochastic rounding, written once over a policy P of lanes, as noise.h is. `w` holds a random
// word for each lane and u = (w >> 8) 2^-24. Integers decide, so that every P gives the same bits.
#pragma once
#include "dtypes.h"

namespace sopt {

// x as a float that bfloat16 holds: the neighbour away from zero iff the fraction that is discarded
// is > u. What is past the largest finite value stays as it is, for rounding to nearest.
template <class P>
SOPT_INLINE typename P::F round_stochastically(bfloat16, typename P::F x, typename P::U w) {
  using U = typename P::U;
  const U bits = P::bits_of(x);
  const U away = ((w >> 8) - ((bits & 0xFFFFu) << 8)) >> 31;
  const U rounded = (bits & 0xFFFF0000u) + (away << 16);
  const auto past = P::test(0x7F7F0000u - (bits & 0x7FFFFFFFu), 0x80000000u);
  return P::select(past, x, P::float_of(rounded));
}

// The same for float16, whose values below 2^-14 are the multiples of 2^-24.
template <class P>
SOPT_INLINE typename P::F round_stochastically(float16, typename P::F x, typename P::U w) {
  using F = typename P::F;
  using U = typename P::U;
  const U bits = P::bits_of(x), magnitude = bits & 0x7FFFFFFFu, word = w >> 8;
  const U away = (word - ((bits & 0x1FFFu) << 11)) >> 31;
  const U rounded = (bits & 0xFFFFE000u) + (away << 13);
  const auto small = P::test(magnitude - 0x38800000u, 0x80000000u);
  const F multiple = P::select(small, P::float_of(magnitude) * 0x1p24f, P::splat(0.0f));
  const F whole = P::to_float(P::to_int(multiple));
  const F u = P::to_float(P::signed_of(word)) * 0x1p-24f;
  const U one_more = P::bits_of(u - (multiple - whole)) >> 31;  // the sign of an exact comparison
  const F nearby = (whole + P::to_float(P::signed_of(one_more))) * 0x1p-24f;
  const U subnormal = P::bits_of(nearby) | (bits & 0x80000000u);
  const auto past = P::test(0x477FE000u - magnitude, 0x80000000u);
  return P::select(past, x, P::select(small, P::float_of(subnormal), P::float_of(rounded)));
}

// sgn(v) min(floor(|v| + u), most), for an integer most <= 255; the sum is exact.
template <class P>
SOPT_INLINE typename P::F stochastic_integer(typename P::F v, float most, typename P::U w) {
  using F = typename P::F;
  using U = typename P::U;
  const U bits = P::bits_of(v), magnitude = bits & 0x7FFFFFFFu;
  const auto past = P::test(bits_of(most) - magnitude, 0x80000000u);
  const F size = P::select(past, P::splat(most), P::float_of(magnitude));
  const F whole = P::to_float(P::to_int(size));
  const U fraction = P::unsigned_of(P::to_int((size - whole) * 0x1p24f));
  const U carry = (fraction + (w >> 8)) >> 24;
  const F rounded = whole + P::to_float(P::signed_of(carry));
  return P::float_of(P::bits_of(rounded) | (bits & 0x80000000u));
}

}  // namespace sopt
