#include "runtime/dispatch.h"

#include <cstdint>
#include <cstdlib>
#include <string>

#include "runtime/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace siglip {
namespace {

constexpr Isa kIsas[] = {Isa::kGeneric, Isa::kAvx2, Isa::kAvx512};

#if defined(__x86_64__)
constexpr uint32_t bit(int index) { return uint32_t{1} << index; }

// Extended control register 0: which register files the system saves.
uint64_t saved_state() {
  uint32_t low = 0;
  uint32_t high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}
#endif

}  // namespace

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    default:
      return "generic";
  }
}

Isa detected_isa() {
#if defined(__x86_64__)
  uint32_t eax = 0;
  uint32_t ebx = 0;
  uint32_t ecx = 0;
  uint32_t edx = 0;
  if (__get_cpuid_count(1, 0, &eax, &ebx, &ecx, &edx) == 0) return Isa::kGeneric;
  const uint32_t fma_osxsave_avx = bit(12) | bit(27) | bit(28);
  if ((ecx & fma_osxsave_avx) != fma_osxsave_avx) return Isa::kGeneric;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return Isa::kGeneric;

  constexpr uint64_t kYmm = 0x06;  // xmm and the upper halves of ymm
  constexpr uint64_t kZmm = 0xe0;  // mask registers, upper halves of zmm, zmm16 to 31
  const uint64_t saved = saved_state();
  const uint32_t avx2 = bit(5);
  if ((ebx & avx2) == 0 || (saved & kYmm) != kYmm) return Isa::kGeneric;
  const uint32_t f_dq_bw_vl = bit(16) | bit(17) | bit(30) | bit(31);
  if ((ebx & f_dq_bw_vl) == f_dq_bw_vl && (saved & kZmm) == kZmm) return Isa::kAvx512;
  return Isa::kAvx2;
#else
  return Isa::kGeneric;
#endif
}

Isa configured_isa() {
  const Isa detected = detected_isa();
  const char* text = std::getenv("SIGLIP2_ISA");
  if (text == nullptr || *text == '\0') return detected;
  for (const Isa isa : kIsas) {
    if (std::string(text) != name_of(isa)) continue;
    if (isa <= detected) return isa;
    throw Error("ERR_ARGUMENT", std::string("cpu: SIGLIP2_ISA must be at most ") +
                                    name_of(detected) + " on this machine, got " + text);
  }
  throw Error("ERR_ARGUMENT",
              std::string("cpu: SIGLIP2_ISA must be generic, avx2 or avx512, got ") + text);
}

}  // namespace siglip
