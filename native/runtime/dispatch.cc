#include "runtime/dispatch.h"

#include <cstdint>
#include <cstdlib>
#include <string>

#include "runtime/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
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

// SIGLIP2_ISA taken apart.
struct Wanted {
  bool given = false;
  Isa isa = Isa::kGeneric;
  bool vnni = true;
  bool bf16 = true;
  bool amx = true;
};

Wanted wanted() {
  Wanted wanted;
  const char* text = std::getenv("SIGLIP2_ISA");
  if (text == nullptr || *text == '\0') return wanted;
  const std::string all = text;
  size_t end = all.find(',');
  const std::string name = all.substr(0, end);
  for (const Isa isa : kIsas) {
    if (name != name_of(isa)) continue;
    wanted.given = true;
    wanted.isa = isa;
  }
  if (!wanted.given) {
    throw Error("ERR_ARGUMENT", "cpu: SIGLIP2_ISA must be generic, avx2 or avx512, got " + name);
  }
  while (end != std::string::npos) {
    const size_t begin = end + 1;
    end = all.find(',', begin);
    const std::string word = all.substr(begin, end == std::string::npos ? end : end - begin);
    if (word == "novnni") {
      wanted.vnni = false;
    } else if (word == "nobf16") {
      wanted.bf16 = false;
    } else if (word == "noamx") {
      wanted.amx = false;
    } else {
      throw Error("ERR_ARGUMENT",
                  "cpu: a feature in SIGLIP2_ISA must be novnni, nobf16 or noamx, got " + word);
    }
  }
  return wanted;
}

#if defined(__x86_64__) && defined(__linux__)
// The system hands out tile registers to those processes that ask for them, for all their threads.
bool may_use_tiles() {
  constexpr uint64_t kTileState = 0x60000;  // configuration and data
  if ((saved_state() & kTileState) != kTileState) return false;
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#elif defined(__x86_64__)
bool may_use_tiles() { return false; }
#endif

// Of the processor, for an instruction set that it has.
Features detected_features(Isa isa) {
  Features features;
#if defined(__x86_64__)
  uint32_t eax = 0;
  uint32_t ebx = 0;
  uint32_t ecx = 0;
  uint32_t edx = 0;
  if (isa == Isa::kGeneric || __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) {
    return features;
  }
  const bool avx512_vnni = (ecx & bit(11)) != 0;
  const uint32_t bf16_tile_int8 = bit(22) | bit(24) | bit(25);
  const bool amx = (edx & bf16_tile_int8) == bf16_tile_int8;
  const uint32_t subleaves = eax;
  uint32_t more = 0;
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0) more = eax;
  const bool avx_vnni = (more & bit(4)) != 0;
  const bool avx512_bf16 = (more & bit(5)) != 0;
  features.vnni = isa == Isa::kAvx512 ? avx512_vnni : avx_vnni;
  features.bf16 = isa == Isa::kAvx512 && avx512_bf16;
  features.amx = isa == Isa::kAvx512 && amx && may_use_tiles();
#else
  static_cast<void>(isa);
#endif
  return features;
}

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
  const Wanted want = wanted();
  if (!want.given) return detected;
  if (want.isa <= detected) return want.isa;
  throw Error("ERR_ARGUMENT", std::string("cpu: SIGLIP2_ISA must be at most ") + name_of(detected) +
                                  " on this machine, got " + std::getenv("SIGLIP2_ISA"));
}

const Features& configured_features() {
  static const Features features = [] {
    const Wanted want = wanted();
    Features found = detected_features(configured_isa());
    found.vnni = found.vnni && want.vnni;
    found.bf16 = found.bf16 && want.bf16;
    found.amx = found.amx && want.amx && (found.vnni || found.bf16);
    return found;
  }();
  return features;
}

}  // namespace siglip
