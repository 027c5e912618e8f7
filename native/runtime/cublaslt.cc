#include "runtime/cublaslt.h"

#include <cstdlib>
#include <string>

#include "runtime/cuda_context.h"
#include "runtime/error.h"

#if defined(SIGLIP_CUBLASLT)
#include <cublasLt.h>
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <vector>
#endif

namespace siglip {
namespace {

// The variable's value, empty where it is not set.
std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

#if defined(SIGLIP_CUBLASLT)

// Six ranges of k of the gradient of 2,304 x 768 weights take 42 MB.
constexpr size_t kWorkspaceBytes = size_t{64} << 20;
// Kernels that are timed for a shape.
constexpr int kCandidates = 8;

// The functions that are used, with the prototypes of NVIDIA's header.
struct Library {
#define SIGLIP_CUBLASLT_FUNCTIONS(F) \
  F(Create)                          \
  F(Destroy)                         \
  F(GetStatusName)                   \
  F(GetVersion)                      \
  F(Matmul)                          \
  F(MatmulAlgoCheck)                 \
  F(MatmulAlgoGetHeuristic)          \
  F(MatmulDescCreate)                \
  F(MatmulDescDestroy)               \
  F(MatmulDescSetAttribute)          \
  F(MatmulPreferenceCreate)          \
  F(MatmulPreferenceDestroy)         \
  F(MatmulPreferenceSetAttribute)    \
  F(MatrixLayoutCreate)              \
  F(MatrixLayoutDestroy)             \
  F(MatrixLayoutSetAttribute)
#define SIGLIP_DECLARE(name) decltype(&cublasLt##name) name = nullptr;
  SIGLIP_CUBLASLT_FUNCTIONS(SIGLIP_DECLARE)
#undef SIGLIP_DECLARE

  // Why it could not be opened; empty when it was. Once open, it stays: other parts of the process may
  // use it, and it runs code of its own when the process ends.
  std::string open(const char* path) {
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return dlerror();
    const char* missing = nullptr;
#define SIGLIP_RESOLVE(name)                                                 \
  name = reinterpret_cast<decltype(name)>(dlsym(library, "cublasLt" #name)); \
  if (name == nullptr) missing = "cublasLt" #name;
    SIGLIP_CUBLASLT_FUNCTIONS(SIGLIP_RESOLVE)
#undef SIGLIP_RESOLVE
#undef SIGLIP_CUBLASLT_FUNCTIONS
    return missing == nullptr ? "" : std::string(path) + " has no " + missing;
  }
};

// Whether a library was opened. `path` is the user's, or empty; `reason` says why not.
bool open_library(const std::string& path, Library* library, std::string* reason) {
  if (!path.empty()) {
    *reason = library->open(path.c_str());
    return reason->empty();
  }
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"}) {
    const std::string why = library->open(name);
    if (why.empty()) return true;
    *reason += (reason->empty() ? "" : "; ") + why;
  }
  return false;
}

// Of the way kernels are chosen: choices of another number are not taken over.
constexpr int kTuning = 3;
// Two candidates this near in time count as equal, and the library's order decides.
constexpr float kTimingNoise = 0.98F;

class Event {
 public:
  Event() { check_cuda(cudaEventCreate(&event_), "cublaslt: an event"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// What makes two products the same to the library: shape, layout, types, epilogue, alignment.
using Key = std::array<int64_t, 12>;

std::string text_of(const Key& key) {
  std::string text;
  for (const int64_t number : key) text += (text.empty() ? "" : ",") + std::to_string(number);
  return text;
}

using Algorithm = cublasLtMatmulAlgo_t;

// The kernels chosen for keys, in a file for the next process: a JSON object, one choice a line.
// What cannot be read counts as not there, what cannot be written is lost.
class Choices {
 public:
  explicit Choices(std::filesystem::path file) : file_(std::move(file)) { read(); }

  const Algorithm* find(const std::string& key) const {
    const auto found = choices_.find(key);
    return found == choices_.end() ? nullptr : &found->second;
  }

  void add(const std::string& key, const Algorithm& algorithm) {
    read();  // what other processes have found since
    choices_[key] = algorithm;
    write();
  }

 private:
  static constexpr size_t kWords = sizeof(Algorithm::data) / sizeof(uint64_t);
  static constexpr size_t kDigits = 16;

  void read() {
    std::ifstream in(file_);
    std::string line;
    while (std::getline(in, line)) {
      std::array<size_t, 4> quotes = {};
      size_t at = 0;
      for (size_t& quote : quotes) {
        quote = line.find('"', at);
        if (quote == std::string::npos) break;
        at = quote + 1;
      }
      if (quotes[3] == std::string::npos || quotes[3] == 0) continue;
      const std::string value = line.substr(quotes[2] + 1, quotes[3] - quotes[2] - 1);
      if (value.size() != kWords * kDigits ||
          value.find_first_not_of("0123456789abcdef") != std::string::npos) {
        continue;
      }
      Algorithm algorithm;
      for (size_t i = 0; i < kWords; ++i) {
        algorithm.data[i] = std::strtoull(value.substr(i * kDigits, kDigits).c_str(), nullptr, 16);
      }
      choices_.emplace(line.substr(quotes[0] + 1, quotes[1] - quotes[0] - 1), algorithm);
    }
  }

  // Under another name first, so that nobody reads half a file.
  void write() const {
    std::error_code error;
    std::filesystem::create_directories(file_.parent_path(), error);
    if (error) return;
    std::filesystem::path part = file_;
    part += "." + std::to_string(getpid());
    {
      std::ofstream out(part);
      const char* separator = "{\n";
      for (const auto& [key, algorithm] : choices_) {
        out << separator << "  \"" << key << "\": \"";
        for (const uint64_t word : algorithm.data) {
          char digits[kDigits + 1];
          std::snprintf(digits, sizeof(digits), "%016llx", static_cast<unsigned long long>(word));
          out << digits;
        }
        out << '"';
        separator = ",\n";
      }
      out << "\n}\n";
      if (!out.flush()) error = std::make_error_code(std::errc::io_error);
    }
    if (!error) std::filesystem::rename(part, file_, error);
    if (error) std::filesystem::remove(part, error);
  }

  std::filesystem::path file_;
  std::map<std::string, Algorithm> choices_;
};

// Empty, hence no file, where neither SIGLIP2_CACHE nor a home is known.
std::filesystem::path choices_file(int device, size_t version) {
  std::filesystem::path folder = environment("SIGLIP2_CACHE");
  if (folder.empty()) {
    const std::string home = environment("HOME");
    if (home.empty()) return {};
    folder = std::filesystem::path(home) / ".cache" / "siglip2";
  }
  cudaDeviceProp properties;
  check_cuda(cudaGetDeviceProperties(&properties, device),
             "cublaslt: the properties of the device");
  std::string gpu = properties.name;
  for (char& c : gpu) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  }
  return folder / ("cublaslt-" + gpu + "-" + std::to_string(version) + "-" +
                   std::to_string(kTuning) + ".json");
}

cudaDataType_t type_of(DType dtype) { return dtype == DType::kBfloat16 ? CUDA_R_16BF : CUDA_R_32F; }

cublasLtEpilogue_t epilogue_of(const MatrixProduct& product) {
  if (product.row_sums != nullptr) return CUBLASLT_EPILOGUE_BGRADB;
  if (product.gelu_of != nullptr) return CUBLASLT_EPILOGUE_DGELU;
  const bool bias = product.bias != nullptr;
  if (!product.gelu) return bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
  if (product.pre == nullptr) return bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
  return bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
}

// What the epilogue writes or reads besides: (m, n), as C.
const void* aux_of(const MatrixProduct& product) {
  return product.pre != nullptr ? product.pre : product.gelu_of;
}

// The largest power of two up to 16 that divides the addresses of all operands.
int64_t alignment_of(const MatrixProduct& product) {
  uintptr_t bits = 16;
  for (const void* pointer :
       {product.a.data, product.b.data, static_cast<const void*>(product.c), product.bias,
        aux_of(product), product.residual, static_cast<const void*>(product.row_sums)}) {
    bits |= reinterpret_cast<uintptr_t>(pointer);
  }
  return static_cast<int64_t>(bits & (~bits + 1));
}

Key key_of(const MatrixProduct& product) {
  const int64_t kind = static_cast<int64_t>(epilogue_of(product)) << 8 |
                       static_cast<int64_t>(product.residual != nullptr) << 4 |
                       static_cast<int64_t>(product.output == DType::kBfloat16) << 3 |
                       static_cast<int64_t>(product.input == DType::kBfloat16) << 2 |
                       static_cast<int64_t>(product.transpose_a) << 1 |
                       static_cast<int64_t>(product.transpose_b);
  return {product.m,
          product.n,
          product.k,
          kind,
          alignment_of(product),
          product.a.stride,
          product.b.stride,
          product.c_stride,
          product.groups,
          product.a.group_stride,
          product.b.group_stride,
          product.c_group_stride};
}

// Whether all operands of a product are in a cache of the workspace's size.
bool fits_in_cache(const MatrixProduct& product) {
  const auto bytes = [](DType dtype, int64_t elements) {
    return static_cast<size_t>(elements) * size_of(dtype);
  };
  return bytes(product.input, (product.m + product.n) * product.k * product.groups) +
             bytes(product.output, product.m * product.n * product.groups) <
         kWorkspaceBytes;
}

// What the library knows nothing of, so that our own kernels do it.
bool within_reach(const MatrixProduct& product) {
  // Its GELU comes after the residual, its pre-activation only with GELU.
  if (product.gelu && product.residual != nullptr) return false;
  // Its hyperbolic tangent is off by up to 5e-6, which shows in float32.
  if ((product.gelu || product.gelu_of != nullptr) && product.output == DType::kFloat32)
    return false;
  if (product.pre != nullptr && !product.gelu) return false;
  // Of the pre-activation: 16 bytes for rows of bfloat16, and no less for float32.
  if (aux_of(product) != nullptr && (product.c_stride % 8 != 0 || alignment_of(product) < 16)) {
    return false;
  }
  // A bias has the type of C.
  if (product.bias != nullptr && product.bias_dtype != product.output) return false;
  return product.row_sums == nullptr || product.bias == nullptr;
}

// Row-major matrices are column-major ones transposed. So the library computes Cᵀ = op(B)ᵀ · op(A)ᵀ: its
// first operand is our B, its second our A, and what is transposed for us is so for it.
class OpenCublasLt : public CublasLt {
 public:
  OpenCublasLt(const Library& library, CudaContext& context)
      : library_(library),
        context_(context),
        choices_(choices_file(context.device, library.GetVersion())),
        tune_(environment("SIGLIP2_CUDA_TUNE") != "0") {
    check(library_.Create(&handle_), "cublaslt: a handle");
    const cudaError_t status = cudaMalloc(&workspace_, kWorkspaceBytes);
    if (status != cudaSuccess) library_.Destroy(handle_);
    check_cuda(status, "cublaslt: the workspace");
  }
  ~OpenCublasLt() override {
    for (auto& [key, plan] : plans_) destroy(&plan);
    library_.Destroy(handle_);
    cudaFree(workspace_);
  }
  OpenCublasLt(const OpenCublasLt&) = delete;
  OpenCublasLt& operator=(const OpenCublasLt&) = delete;

  bool multiply(const MatrixProduct& product) override {
    if (!within_reach(product)) return false;
    const Key key = key_of(product);
    auto found = plans_.find(key);
    if (found == plans_.end()) found = plans_.emplace(key, make_plan(product, text_of(key))).first;
    Plan& plan = found->second;
    if (!plan.usable) return false;
    set_pointers(plan, product);
    if (run(plan, plan.algorithm, product) == CUBLAS_STATUS_SUCCESS) return true;
    plan.usable = false;
    return false;
  }

 private:
  struct Plan {
    bool usable = false;
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t first = nullptr;   // our B
    cublasLtMatrixLayout_t second = nullptr;  // our A
    cublasLtMatrixLayout_t result = nullptr;
    Algorithm algorithm = {};
  };

  void check(cublasStatus_t status, const char* what) const {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    throw Error("ERR_CUDA", std::string(what) + ": must succeed on the device, got " +
                                library_.GetStatusName(status));
  }

  template <typename T>
  void set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t attribute,
           T value) const {
    check(library_.MatmulDescSetAttribute(operation, attribute, &value, sizeof(value)),
          "cublaslt: an attribute of a product");
  }

  cublasLtMatrixLayout_t layout(DType dtype, int64_t rows, int64_t columns, int64_t stride,
                                int64_t groups, int64_t group_stride) const {
    cublasLtMatrixLayout_t made = nullptr;
    check(library_.MatrixLayoutCreate(&made, type_of(dtype), static_cast<uint64_t>(columns),
                                      static_cast<uint64_t>(rows), stride),
          "cublaslt: the layout of a matrix");
    const int32_t count = static_cast<int32_t>(groups);
    if (groups > 1) {
      library_.MatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                        sizeof(count));
      library_.MatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                        &group_stride, sizeof(group_stride));
    }
    return made;
  }

  void destroy(Plan* plan) const {
    if (plan->operation != nullptr) library_.MatmulDescDestroy(plan->operation);
    for (cublasLtMatrixLayout_t made : {plan->first, plan->second, plan->result}) {
      if (made != nullptr) library_.MatrixLayoutDestroy(made);
    }
    *plan = {};
  }

  void set_pointers(const Plan& plan, const MatrixProduct& product) const {
    const void* vector = product.row_sums != nullptr ? product.row_sums : product.bias;
    if (vector != nullptr) {
      set(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, vector);
    }
    if (const void* aux = aux_of(product)) {
      set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, aux);
    }
  }

  cublasStatus_t run(const Plan& plan, const Algorithm& algorithm,
                     const MatrixProduct& product) const {
    const float one = 1.0F;
    const float beta = product.residual != nullptr ? 1.0F : 0.0F;
    const void* added = product.residual != nullptr ? product.residual : product.c;
    return library_.Matmul(handle_, plan.operation, &one, product.b.data, plan.first,
                           product.a.data, plan.second, &beta, added, plan.result, product.c,
                           plan.result, &algorithm, workspace_, kWorkspaceBytes, context_.stream);
  }

  Plan make_plan(const MatrixProduct& product, const std::string& key) {
    Plan plan;
    describe(product, &plan);
    set_pointers(plan, product);
    cublasLtMatmulHeuristicResult_t checked = {};
    const Algorithm* chosen = choices_.find(key);
    if (chosen != nullptr &&
        library_.MatmulAlgoCheck(handle_, plan.operation, plan.first, plan.second, plan.result,
                                 plan.result, chosen, &checked) == CUBLAS_STATUS_SUCCESS &&
        checked.workspaceSize <= kWorkspaceBytes) {
      plan.algorithm = *chosen;
      plan.usable = true;
      return plan;
    }
    const std::vector<Algorithm> candidates = candidates_for(product, plan);
    if (candidates.empty()) {
      destroy(&plan);
      return plan;
    }
    plan.algorithm = candidates.front();
    plan.usable = true;
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    check_cuda(cudaStreamIsCapturing(context_.stream, &capture), "cublaslt: the stream");
    // Timing runs the product many times, which must not change what it reads.
    if (tune_ && capture == cudaStreamCaptureStatusNone && product.residual != product.c) {
      plan.usable = fastest(product, plan, candidates, &plan.algorithm);
      if (plan.usable) choices_.add(key, plan.algorithm);
    }
    return plan;
  }

  void describe(const MatrixProduct& product, Plan* plan) const {
    check(library_.MatmulDescCreate(&plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F),
          "cublaslt: a product");
    const auto transposed = [](bool yes) -> int32_t { return yes ? CUBLAS_OP_T : CUBLAS_OP_N; };
    set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, transposed(product.transpose_b));
    set(plan->operation, CUBLASLT_MATMUL_DESC_TRANSB, transposed(product.transpose_a));
    set(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE,
        static_cast<uint32_t>(epilogue_of(product)));
    if (aux_of(product) != nullptr) {
      set(plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, product.c_stride);
    }
    plan->first = layout(product.input, product.transpose_b ? product.n : product.k,
                         product.transpose_b ? product.k : product.n, product.b.stride,
                         product.groups, product.b.group_stride);
    plan->second = layout(product.input, product.transpose_a ? product.k : product.m,
                          product.transpose_a ? product.m : product.k, product.a.stride,
                          product.groups, product.a.group_stride);
    plan->result = layout(product.output, product.m, product.n, product.c_stride, product.groups,
                          product.c_group_stride);
  }

  // In the library's order; none where it does not support the product.
  std::vector<Algorithm> candidates_for(const MatrixProduct& product, const Plan& plan) const {
    cublasLtMatmulPreference_t preference = nullptr;
    check(library_.MatmulPreferenceCreate(&preference), "cublaslt: a preference");
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      library_.MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value));
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspaceBytes});
    // Partial results are summed from the workspace, in float32 and in their order.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    const uint32_t alignment = static_cast<uint32_t>(alignment_of(product));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment);
    std::array<cublasLtMatmulHeuristicResult_t, kCandidates> results = {};
    int count = 0;
    const cublasStatus_t status = library_.MatmulAlgoGetHeuristic(
        handle_, plan.operation, plan.first, plan.second, plan.result, plan.result, preference,
        kCandidates, results.data(), &count);
    library_.MatmulPreferenceDestroy(preference);
    std::vector<Algorithm> candidates;
    if (status != CUBLAS_STATUS_SUCCESS) return candidates;
    for (int i = 0; i < count; ++i) {
      if (results[i].state == CUBLAS_STATUS_SUCCESS) candidates.push_back(results[i].algo);
    }
    return candidates;
  }

  // Milliseconds of one run, the mean of `runs`; negative where the library refuses. What a small product
  // reads comes from memory in a model, whose other layers have taken its place in the cache since.
  float time(const MatrixProduct& product, const Plan& plan, const Algorithm& algorithm, int runs,
             const Event& begin, const Event& end) const {
    if (fits_in_cache(product)) {
      check_cuda(cudaMemsetAsync(workspace_, 0, kWorkspaceBytes, context_.stream),
                 "cublaslt: timing");
      runs = 1;
    }
    check_cuda(cudaEventRecord(begin, context_.stream), "cublaslt: timing");
    for (int i = 0; i < runs; ++i) {
      if (run(plan, algorithm, product) != CUBLAS_STATUS_SUCCESS) return -1.0F;
    }
    check_cuda(cudaEventRecord(end, context_.stream), "cublaslt: timing");
    check_cuda(cudaEventSynchronize(end), "cublaslt: timing");
    float milliseconds = 0.0F;
    check_cuda(cudaEventElapsedTime(&milliseconds, begin, end), "cublaslt: timing");
    return milliseconds / static_cast<float>(runs);
  }

  // Whether any candidate runs; `algorithm` becomes the fastest. Candidates take turns, so that a change of
  // the clock meets them all, and their medians count.
  bool fastest(const MatrixProduct& product, const Plan& plan,
               const std::vector<Algorithm>& candidates, Algorithm* algorithm) const {
    constexpr float kWarmUpMilliseconds = 3.0F;  // for the clock to rise
    constexpr float kRunMilliseconds = 0.2F;     // for the clock to tell
    constexpr float kHopeless = 1.3F;            // times the least
    constexpr size_t kRounds = 7;
    const Event begin;
    const Event end;
    float warm = 0.0F;
    while (candidates.size() > 1 && warm < kWarmUpMilliseconds) {
      const float once = time(product, plan, candidates.front(), 1, begin, end);
      if (once < 0.0F) break;
      warm += std::max(once, 0.02F);
    }
    struct Contender {
      const Algorithm* algorithm;
      int runs;
      float first;
      std::array<float, kRounds> times;
    };
    std::vector<Contender> contenders;
    float least = -1.0F;
    for (const Algorithm& candidate : candidates) {
      // The first run loads the kernel.
      if (time(product, plan, candidate, 1, begin, end) < 0.0F) continue;
      const float once = time(product, plan, candidate, 1, begin, end);
      const int runs = std::clamp(static_cast<int>(kRunMilliseconds / once), 1, 20);
      contenders.push_back({&candidate, runs, once, {}});
      if (least < 0.0F || once < least) least = once;
    }
    for (size_t round = 0; round < kRounds; ++round) {
      for (Contender& contender : contenders) {
        if (contender.first > kHopeless * least) continue;
        contender.times[round] =
            time(product, plan, *contender.algorithm, contender.runs, begin, end);
      }
    }
    float best = -1.0F;
    for (Contender& contender : contenders) {
      if (contender.first > kHopeless * least) continue;
      std::nth_element(contender.times.begin(), contender.times.begin() + kRounds / 2,
                       contender.times.end());
      const float median = contender.times[kRounds / 2];
      if (best >= 0.0F && median > kTimingNoise * best) continue;
      best = median;
      *algorithm = *contender.algorithm;
    }
    return best >= 0.0F;
  }

  Library library_;
  CudaContext& context_;
  Choices choices_;
  bool tune_;
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  std::map<Key, Plan> plans_;
};

#endif  // SIGLIP_CUBLASLT

}  // namespace

std::unique_ptr<CublasLt> open_cublaslt(CudaContext& context) {
  const std::string wanted = environment("SIGLIP2_CUDA_GEMM");
  if (wanted == "own") return nullptr;
  if (!wanted.empty() && wanted != "cublaslt") {
    throw Error("ERR_ARGUMENT", "cuda: SIGLIP2_CUDA_GEMM must be own or cublaslt, got " + wanted);
  }
  std::string reason;
#if defined(SIGLIP_CUBLASLT)
  const std::string path = environment("SIGLIP2_CUBLASLT");
  Library library;
  if (open_library(path, &library, &reason)) {
    return std::make_unique<OpenCublasLt>(library, context);
  }
  if (!path.empty()) {
    throw Error("ERR_ARGUMENT", "cuda: SIGLIP2_CUBLASLT must be the library's path, got " + reason);
  }
#else
  static_cast<void>(context);
  reason = "an addon that was built without its header";
#endif
  if (wanted.empty()) return nullptr;
  throw Error("ERR_ARGUMENT",
              "cuda: SIGLIP2_CUDA_GEMM=cublaslt must find the library, got " + reason);
}

}  // namespace siglip
