// What host and device code share: one way to say "inline" and "unroll", one to reinterpret bits.
#pragma once
#include <cstdint>
#include <cstring>

// Internal linkage on purpose. These headers are compiled once per instruction-set level;
// of an ordinary inline function the linker would keep one copy, perhaps the AVX-512 one,
// for all levels.
#if defined(__CUDACC__)
#define SOPT_INLINE static __device__ __forceinline__
#define SOPT_UNROLL _Pragma("unroll")
#else
#define SOPT_INLINE static inline __attribute__((always_inline))
#define SOPT_UNROLL _Pragma("GCC unroll 32")
#endif
// After the parameters of a lambda that a loop calls once per vector.
#define SOPT_LAMBDA __attribute__((always_inline))

namespace sopt {

SOPT_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

SOPT_INLINE float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace sopt
