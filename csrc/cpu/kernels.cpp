// Compiled once per instruction-set level, with the flags and the name SOPT_KERNELS that
// CMakeLists.txt gives it. Only SOPT_KERNELS may have external linkage (see portable.h).
#include "kernels.h"

#if defined(__AVX512F__)
#include "pack_512.h"
#elif defined(__AVX2__)
#include "pack_256.h"
#else
#include "pack_128.h"
#endif
#include "add_noise.h"
#include "attention_forward.h"
#include "box_muller.h"
#include "int8.h"
#include "int8_layer.h"
#include "low_rank.h"
#include "philox4x32.h"
#include "restore_accumulate.h"

namespace sopt {

const Kernels SOPT_KERNELS = {
    {{add_noise<Pack, Gaussian, float>, add_noise<Pack, Gaussian, bfloat16>,
      add_noise<Pack, Gaussian, float16>},
     {add_noise<Pack, Rademacher, float>, add_noise<Pack, Rademacher, bfloat16>,
      add_noise<Pack, Rademacher, float16>}},
    {noise_tile<Pack, Gaussian>, noise_tile<Pack, Rademacher>},
    {add_scaled<Pack, float>, add_scaled<Pack, bfloat16>, add_scaled<Pack, float16>},
    {perturb_int8<Pack, Gaussian>, perturb_int8<Pack, Rademacher>},
    {update_int8<Pack, Gaussian>, update_int8<Pack, Rademacher>},
    philox4x32_10_rows<Pack>,
    box_muller_pairs<Pack>,
    {attention_forward<Singles<Pack>, float>, attention_forward<Bfloat16Operands<Pack>, bfloat16>},
    {add_low_rank<Pack, float>, add_low_rank<Pack, bfloat16>, add_low_rank<Pack, float16>},
    {{int8_body<RealSingles<Pack>, float>(), int8_body<Bfloat16Reals<Pack>, bfloat16>(),
      int8_body<RealSingles<Pack>, float16>()},
     {int8_body<Integers<Pack>, float>(), int8_body<Integers<Pack>, bfloat16>(),
      int8_body<Integers<Pack>, float16>()}},
};

}  // namespace sopt
