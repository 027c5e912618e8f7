#include "runtime/machine.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "runtime/error.h"

#if defined(__linux__)
#include <sched.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace siglip {
namespace {

constexpr int kMaxThreads = 1024;

#if defined(__linux__)
bool read_number(const std::string& path, int64_t* value) {
  std::ifstream file(path);
  return static_cast<bool>(file >> *value);
}

// Distinct (package, core) pairs among the processors of our affinity mask: hyper-threads share the
// units that do the arithmetic, so a second thread on a core only costs cache.
int physical_cores() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return 0;
  std::set<std::pair<int64_t, int64_t>> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    const std::string topology = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
    int64_t package = 0;
    int64_t core = 0;
    if (!read_number(topology + "physical_package_id", &package) ||
        !read_number(topology + "core_id", &core)) {
      return CPU_COUNT(&allowed);
    }
    cores.emplace(package, core);
  }
  return static_cast<int>(cores.size());
}

// Processors' worth of time the container may use, rounded up; 0 when there is no limit.
int quota_cores() {
  int64_t quota = 0;
  int64_t period = 0;
  std::ifstream v2("/sys/fs/cgroup/cpu.max");
  const bool limited =
      (v2 >> quota >> period) || (read_number("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", &quota) &&
                                  read_number("/sys/fs/cgroup/cpu/cpu.cfs_period_us", &period));
  if (!limited || quota <= 0 || period <= 0) return 0;
  return static_cast<int>(std::min<int64_t>((quota + period - 1) / period, kMaxThreads));
}
#elif defined(__APPLE__)
int physical_cores() {
  int cores = 0;
  size_t size = sizeof(cores);
  return sysctlbyname("hw.physicalcpu", &cores, &size, nullptr, 0) == 0 ? cores : 0;
}
int quota_cores() { return 0; }
#else
int physical_cores() { return 0; }
int quota_cores() { return 0; }
#endif

}  // namespace

int usable_cores() {
  int cores = physical_cores();
  if (cores <= 0) cores = static_cast<int>(std::thread::hardware_concurrency());
  const int quota = quota_cores();
  if (quota > 0) cores = std::min(cores, quota);
  return std::clamp(cores, 1, kMaxThreads);
}

size_t usable_memory() {
  size_t bytes =
      static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
#if defined(__linux__)
  for (const char* path :
       {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    int64_t limit = 0;  // stays 0 when the file says "max"
    if (read_number(path, &limit) && limit > 0) bytes = std::min(bytes, static_cast<size_t>(limit));
  }
#endif
  return bytes;
}

int configured_threads() {
  const char* text = std::getenv("SIGLIP2_THREADS");
  if (text == nullptr || *text == '\0') return usable_cores();
  char* end = nullptr;
  const long threads = std::strtol(text, &end, 10);
  if (*end != '\0' || threads < 1 || threads > kMaxThreads) {
    throw Error("ERR_ARGUMENT", "cpu: SIGLIP2_THREADS must be a whole number from 1 to " +
                                    std::to_string(kMaxThreads) + ", got " + text);
  }
  return static_cast<int>(threads);
}

}  // namespace siglip
