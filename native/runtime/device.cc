#include "runtime/device.h"

#include <cstdlib>
#include <map>
#include <mutex>

#include "runtime/cpu_device.h"
#include "runtime/cuda.h"
#include "runtime/error.h"

namespace siglip {
namespace {

struct Registry {
  std::mutex mutex;
  int environments = 0;
  std::map<std::string, Device*> devices;
};

// Never destroyed, as the devices are.
Registry& registry() {
  static auto* registry = new Registry();
  return *registry;
}

// N of "cuda:N", or the first usable index for "cuda"; -1 for another name.
int cuda_index(const std::string& name) {
  const std::vector<CudaDeviceDescription>& devices = cuda_description().devices;
  if (name == "cuda") return devices.empty() ? 0 : devices.front().index;
  constexpr size_t kMaxDigits = 4;
  const std::string digits = name.rfind("cuda:", 0) == 0 ? name.substr(5) : "";
  if (digits.empty() || digits.size() > kMaxDigits ||
      digits.find_first_not_of("0123456789") != std::string::npos ||
      (digits.size() > 1 && digits[0] == '0')) {
    return -1;
  }
  return std::stoi(digits);
}

[[noreturn]] void refuse(const std::string& name) {
  const CudaDescription& cuda = cuda_description();
  std::string there;
  for (const CudaDeviceDescription& device : cuda.devices) {
    there += (there.empty() ? "cuda:" : ", cuda:") + std::to_string(device.index) + " (" +
             device.name + ")";
  }
  std::string message =
      name + ": the device must be there, got " + (there.empty() ? "no CUDA device" : there);
  for (const std::string& line : cuda.missing) message += "\n" + line;
  throw Error("ERR_DEVICE", message);
}

}  // namespace

Device& Device::cpu() {
  static Device* device = [] {
    auto* created = new CpuDevice();
    Registry& all = registry();
    const std::lock_guard<std::mutex> lock(all.mutex);
    all.devices.emplace(created->name(), created);
    std::atexit(stop_all);
    return created;
  }();
  return *device;
}

Device& Device::named(const std::string& name) {
  if (name == "cpu") return cpu();
  const int index = cuda_index(name);
  if (index < 0) {
    throw Error("ERR_ARGUMENT", "device: it must be cpu, cuda or cuda:N, got " + name);
  }
  const std::string full = "cuda:" + std::to_string(index);
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto found = all.devices.find(full);
  if (found != all.devices.end()) return *found->second;
  bool usable = false;
  for (const CudaDeviceDescription& device : cuda_description().devices) {
    usable = usable || device.index == index;
  }
  if (!usable) refuse(full);
  Device* device = open_cuda_device(index);
  all.devices.emplace(full, device);
  // Behind the handlers that CUDA has registered by now, so that this one comes before them.
  std::atexit(stop_all);
  return *device;
}

void Device::attach() {
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  ++all.environments;
}

void Device::detach() {
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  if (--all.environments > 0) return;
  for (const auto& entry : all.devices) entry.second->end();
}

void Device::stop_all() {
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  for (const auto& entry : all.devices) entry.second->end();
}

void Device::end() {
  {
    const std::lock_guard<std::mutex> lock(attendants_mutex_);
    for (Attendant* attendant : attendants_) attendant->on_stop();
  }
  stop();
}

void Device::attend(Attendant& attendant) {
  const std::lock_guard<std::mutex> lock(attendants_mutex_);
  attendants_.insert(&attendant);
}

void Device::leave(Attendant& attendant) {
  const std::lock_guard<std::mutex> lock(attendants_mutex_);
  attendants_.erase(&attendant);
}

#if !defined(SIGLIP_CUDA)
const CudaDescription& cuda_description() {
  static const auto* description = [] {
    auto* made = new CudaDescription();
    made->missing.emplace_back(
        "this build has no CUDA kernels\n"
        "to do: install the CUDA toolkit and CMake, so that nvcc and cmake are found, and run "
        "`npm run build:native` in the package");
    return made;
  }();
  return *description;
}

size_t cuda_free_bytes(int) { return 0; }

Device* open_cuda_device(int) { return nullptr; }
#endif

}  // namespace siglip
