#include <atomic>
#include <cstring>

#include "kernels.h"
#include "sopt.h"

#if defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace sopt {
namespace {

struct Level {
  const char* name;
  const Kernels* kernels;
  bool supported;
};

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
bool has_avx512_bf16() { return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16"); }
#elif defined(__aarch64__)
bool has_neon_dot() {
#if defined(__APPLE__)
  int found = 0;
  size_t size = sizeof found;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &found, &size, nullptr, 0) == 0 && found;
#elif defined(__linux__)
  return (getauxval(AT_HWCAP) & 1 << 20) != 0;  // HWCAP_ASIMDDP
#else
  return false;
#endif
}
#endif

// Best first; the last one is taken without asking.
const Level levels[] = {
#if defined(__x86_64__)
    {"avx512_bf16", &kernels_avx512_bf16, has_avx512_bf16()},
    {"avx512_vnni", &kernels_avx512_vnni, has_avx512_vnni()},
    {"avx512", &kernels_avx512, has_avx512()},
    {"avx2", &kernels_avx2, has_avx2()},
    {"sse42", &kernels_sse42, true},
#elif defined(__aarch64__)
    {"neon_dot", &kernels_neon_dot, has_neon_dot()},
    {"neon", &kernels_neon, true},
#else
    {"generic", &kernels_generic, true},
#endif
};

const Level* best() {
  const Level* level = levels;
  while (!level->supported) ++level;
  return level;
}

std::atomic<const Level*> current{best()};

}  // namespace

const Kernels& kernels() { return *current.load(std::memory_order_relaxed)->kernels; }

}  // namespace sopt

const char* sopt_cpu_level(void) { return sopt::current.load()->name; }

sopt_status sopt_set_cpu_level(const char* name) {
  for (const sopt::Level& level : sopt::levels)
    if (level.supported && strcmp(level.name, name) == 0) {
      sopt::current = &level;
      return SOPT_OK;
    }
  return sopt_fail(SOPT_UNSUPPORTED, "%s: this processor has no level '%s'", __func__, name);
}
