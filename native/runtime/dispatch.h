// Which of the compiled instruction sets this process uses.
#pragma once

namespace siglip {

enum class Isa { kGeneric = 0, kAvx2 = 1, kAvx512 = 2 };

const char* name_of(Isa isa);

// The widest instruction set that the processor has and the system saves on a context switch.
Isa detected_isa();

// What SIGLIP2_ISA asks for, or else detected_isa(). The variable is generic, avx2 or avx512, and may
// go on with ",novnni", ",nobf16" and ",noamx", which switch features off. Throws ERR_ARGUMENT for another word,
// or for a set this machine does not have.
Isa configured_isa();

// Instructions that not every machine with an instruction set has. Kernels choose by them at run time.
struct Features {
  bool vnni = false;  // vpdpbusd: AVX512_VNNI with avx512, AVX-VNNI with avx2
  bool bf16 = false;  // vdpbf16ps: AVX512_BF16 with avx512
  // Tile registers with both products, AMX-BF16 and AMX-INT8, with avx512; narrow weights take them for what vnni and
  // bf16 allow.
  bool amx = false;
};

// Those of the machine that go with configured_isa() and are not switched off. Read once; throws as
// configured_isa() does.
const Features& configured_features();

}  // namespace siglip
