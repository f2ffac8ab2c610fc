// Words to Gaussian samples: the normative arithmetic of noise, version 1.
//
// Written once over a policy P of lanes: P::F, P::U and P::I hold float, uint32_t and int32_t, as
// scalars, vectors or several vectors. Only +, -, *, integer and bit operations, comparisons, fma,
// correctly rounded sqrt and exact conversions occur, in a fixed order, so that every P gives the
// same bits; sopt_kernels/_noise.py is the same in plain PyTorch. Any change here makes a new
// version.
//
// The polynomials minimise the largest relative error of the function on the interval given
// (iteratively reweighted least squares on 2000 Chebyshev points, in float64); coefficients were
// rounded to float32 one at a time from the lowest, the rest fitted again after each. Largest
// relative errors: log 2^-28.0, sine 2^-27.9, cosine 2^-31.1.
//
// Error against float64, from a scan of all 2^32 first words and of all 2^30 offsets from a quarter
// turn: radius 2.08, sine 1.82, cosine 1.61 units of 2^-24 relative. As the two words of a sample
// are independent, the worst pair is about the worst of each, combined by mantissa (512 bins):
// z is within 3.99 ulp.
#pragma once
#include "portable.h"

namespace sopt {

template <class P, int N>
SOPT_INLINE typename P::F polynomial(typename P::F x, const float (&coefficients)[N]) {
  typename P::F value = P::splat(coefficients[N - 1]);
  SOPT_UNROLL
  for (int k = N - 2; k >= 0; --k) value = P::fma(x, value, P::splat(coefficients[k]));
  return value;
}

// sqrt(-2 ln u), u = (w + 1/2) 2^-32.
template <class P>
SOPT_INLINE typename P::F radius(typename P::U w) {
  using F = typename P::F;
  using U = typename P::U;
  // -2 log1p(-g / 2) = g + g^2 * polynomial on [0, 1].
  constexpr float kLog[] = {0x1.00001ep-2f, 0x1.5542f6p-4f,  0x1.01e9dap-5f,
                            0x1.6830eap-7f, 0x1.5c3ad8p-7f,  -0x1.2f3ddep-7f,
                            0x1.f88efcp-7f, -0x1.3cfc58p-7f, 0x1.be5234p-9f};
  constexpr float kMinus2Ln2 = -0x1.62e43p+0f;
  const auto upper = P::test(w, 0x80000000u);  // u > 1/2: ln u = log1p(-(1 - u))
  // The distance to the nearer end, formed from the integer.
  const U nearer = P::flip(upper, w);
  const F f = P::fma(P::to_float(P::signed_of(nearer)), P::splat(0x1p-31f), P::splat(0x1p-32f));
  // Lower half: 2 u = f = 2^exponent * mantissa, mantissa in [1, 2), so that with
  // g = 2 - mantissa, ln u = exponent ln 2 + log1p(-g / 2). Upper half: 2 (1 - u) = f = g.
  const F g = P::select(upper, f, 2.0f - P::mantissa(f));
  const F exponent = P::select(upper, P::splat(0.0f), P::exponent(f));
  const F linear = P::fma(exponent, P::splat(kMinus2Ln2), g);
  return P::sqrt(P::fma(polynomial<P>(g, kLog), g * g, linear));
}

// r cos(a) and r sin(a), a = 2 pi (w + 1/2) 2^-32.
template <class P>
SOPT_INLINE void polar(typename P::F r, typename P::U w, typename P::F& x, typename P::F& y) {
  using F = typename P::F;
  using U = typename P::U;
  constexpr float kPi4High = 0x1.921fb6p-1f, kPi4Low = -0x1.777a5cp-26f;
  constexpr float kSin[] = {-0x1.4abbbep-4f, 0x1.465facp-9f, -0x1.2db5c8p-15f};
  constexpr float kCos[] = {-0x1.3bd3ccp-2f, 0x1.03c1b0p-6f, -0x1.55b2b2p-12f, 0x1.d4f47ap-19f};
  // The nearest multiple of pi / 2 in the top two bits, the rest exactly, in units of pi / 4:
  // octants 2q - 1 and 2q belong to quadrant q, with t in (-1, 0) and (0, 1).
  const U quadrant = w + 0x20000000u;
  const F turn = P::to_float(P::signed_of((w << 2) | 2u));
  const F t = P::float_of(P::bits_of(turn) - (31u << 23));  // times 2^-31: turn is never 0
  const F tt = t * t;
  const F low = P::fma(tt, polynomial<P>(tt, kSin), P::splat(kPi4Low));
  const F s = P::fma(t, P::splat(kPi4High), t * low);
  const F c = P::fma(tt, polynomial<P>(tt, kCos), P::splat(1.0f));
  // Quadrants 0 to 3 have (cos a, sin a) = (c, s), (-s, c), (-c, -s), (s, -c).
  const auto odd = P::test(quadrant, 0x40000000u);
  const F signed_r = P::float_of(P::bits_of(r) ^ (quadrant & 0x80000000u));
  x = signed_r * P::select(odd, -s, c);
  y = signed_r * P::select(odd, c, s);
}

// The two samples of the words (w0, w1): Box & Muller, Ann. Math. Stat. 29(2), 1958.
template <class P>
SOPT_INLINE void box_muller(typename P::U w0, typename P::U w1, typename P::F& z0,
                            typename P::F& z1) {
  polar<P>(radius<P>(w0), w1, z0, z1);
}

}  // namespace sopt
