// Which of the compiled instruction sets this process uses.
#pragma once

namespace siglip {

enum class Isa { kGeneric = 0, kAvx2 = 1, kAvx512 = 2 };

const char* name_of(Isa isa);

// The widest instruction set that the processor has and the system saves on a context switch.
Isa detected_isa();

// What SIGLIP2_ISA (generic, avx2, avx512) asks for, or else detected_isa(). Throws ERR_ARGUMENT for
// another word, or for a set this machine does not have.
Isa configured_isa();

}  // namespace siglip
