// bfloat16 and float16 as storage types: arithmetic is float32, rounding to nearest even.
#pragma once
#include "portable.h"

namespace sopt {

struct bfloat16 {
  uint16_t bits;
};

struct float16 {
  uint16_t bits;
};

SOPT_INLINE float to_float(float16 value) {
  const uint32_t sign = uint32_t{value.bits} << 16 & 0x80000000u;
  const uint32_t magnitude = value.bits & 0x7FFFu;
  // As a float, the shifted bits are the value times 2^-112, also for subnormals: exact.
  const float scaled = float_of(magnitude << 13) * 0x1p112f;
  const uint32_t bits = magnitude < 0x7C00u ? bits_of(scaled) : magnitude << 13 | 0x7F800000u;
  return float_of(sign | bits);
}

SOPT_INLINE float16 to_float16(float value) {
  const uint32_t sign = bits_of(value) >> 16 & 0x8000u;
  const uint32_t magnitude = bits_of(value) & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return {uint16_t(sign | 0x7E00u)};   // NaN
  if (magnitude >= 0x477FF000u) return {uint16_t(sign | 0x7C00u)};  // rounds past 65504
  if (magnitude < 0x38800000u) {  // subnormal: adding 1/2 leaves it, rounded, in the low bits
    const float shifted = float_of(magnitude) + 0.5f;
    return {uint16_t(sign | (bits_of(shifted) - 0x3F000000u))};
  }
  const uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1u) - (112u << 23);
  return {uint16_t(sign | rounded >> 13)};
}

}  // namespace sopt
