// A kernel as the runtime sees it: name, argument kinds and type-erased functions. All of it is
// derived from the C++ signature, which is therefore the only description there is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "runtime/dispatch.h"
#include "runtime/memory.h"
#include "runtime/stream.h"
#include "runtime/view.h"

namespace siglip {

enum class ArgumentKind : uint8_t {
  kIn,
  kMaybeIn,
  kOut,
  kMaybeOut,
  kInOut,
  kInList,
  kInt,
  kFloat,
  kScratch,
};

const char* name_of(ArgumentKind kind);

// One argument of one call, ready to be handed over; which fields count depends on the kind.
struct Operand {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int rank = 0;  // 0: an absent optional operand
  int64_t extents[kMaxRank] = {};
  InList list;
  int64_t integer = 0;
  double real = 0;
  size_t scratch_bytes = 0;
};

// How a parameter type of a kernel is described, and made from an operand.
template <typename Parameter>
struct Binding;

template <typename V, ArgumentKind Kind>
struct ViewBinding {
  static constexpr ArgumentKind kKind = Kind;
  static V get(const Operand& operand) {
    return V(operand.data, operand.dtype, operand.rank, operand.extents);
  }
};
template <>
struct Binding<In> : ViewBinding<In, ArgumentKind::kIn> {};
template <>
struct Binding<MaybeIn> : ViewBinding<MaybeIn, ArgumentKind::kMaybeIn> {};
template <>
struct Binding<Out> : ViewBinding<Out, ArgumentKind::kOut> {};
template <>
struct Binding<MaybeOut> : ViewBinding<MaybeOut, ArgumentKind::kMaybeOut> {};
template <>
struct Binding<InOut> : ViewBinding<InOut, ArgumentKind::kInOut> {};
template <>
struct Binding<InList> {
  static constexpr ArgumentKind kKind = ArgumentKind::kInList;
  static InList get(const Operand& operand) { return operand.list; }
};
template <>
struct Binding<int64_t> {
  static constexpr ArgumentKind kKind = ArgumentKind::kInt;
  static int64_t get(const Operand& operand) { return operand.integer; }
};
template <>
struct Binding<double> {
  static constexpr ArgumentKind kKind = ArgumentKind::kFloat;
  static double get(const Operand& operand) { return operand.real; }
};
template <>
struct Binding<Scratch> {
  static constexpr ArgumentKind kKind = ArgumentKind::kScratch;
  static Scratch get(const Operand& operand) {
    return {static_cast<std::byte*>(operand.data), operand.scratch_bytes};
  }
};

struct Argument {
  std::string name;
  ArgumentKind kind;
};

class Kernel {
 public:
  const std::string& name() const { return name_; }
  const std::vector<Argument>& arguments() const { return arguments_; }
  // False where the kernel has no form for the device: then nothing below may be called.
  bool present() const { return function_ != nullptr; }

  void run(Stream& stream, const Operand* operands) const { invoke_(function_, stream, operands); }

  // Bytes of scratch a call with these operands needs, whose views carry null data; `workers` are the
  // device's.
  size_t scratch_bytes(int workers, const Operand* operands) const {
    if (measure_ == nullptr) return 0;
    return measure_(scratch_function_, workers, operands, scratch_operands_.data());
  }

 private:
  using Function = void (*)();
  template <typename Signature>
  friend class KernelRow;

  std::string name_;
  std::vector<Argument> arguments_;
  Function function_ = nullptr;
  void (*invoke_)(Function, Stream&, const Operand*) = nullptr;
  Function scratch_function_ = nullptr;
  size_t (*measure_)(Function, int, const Operand*, const int*) = nullptr;
  std::vector<int> scratch_operands_;  // which arguments the scratch function takes
};

// The compiled forms of one function. Being of one type, they cannot drift apart. Those that this
// build lacks are null.
template <typename Signature>
struct Variants {
  Signature* generic;
  Signature* avx2;
  Signature* avx512;
  Signature* cuda = nullptr;

  Signature* pick(Isa isa) const {
    return isa == Isa::kAvx512 ? avx512 : isa == Isa::kAvx2 ? avx2 : generic;
  }
  Signature* pick(DeviceKind kind, Isa isa) const {
    return kind == DeviceKind::kCuda ? cuda : pick(isa);
  }
};

template <typename Signature>
class KernelRow;

// Builds a Kernel from a row of the table.
template <typename... Parameters>
class KernelRow<void(Stream&, Parameters...)> {
 public:
  using Signature = void(Stream&, Parameters...);
  static constexpr bool kHasScratch = (std::is_same_v<Parameters, Scratch> || ...);

  // `names` are those of the arguments in order, without the scratch, which comes last.
  template <size_t Count>
  static Kernel make(const char* name, Signature* function, const char* const (&names)[Count]) {
    static_assert(Count + (kHasScratch ? 1 : 0) == sizeof...(Parameters),
                  "a row names every argument but the scratch");
    constexpr ArgumentKind kKinds[] = {Binding<Parameters>::kKind...};
    Kernel kernel;
    kernel.name_ = name;
    for (size_t i = 0; i < Count; ++i) kernel.arguments_.push_back({names[i], kKinds[i]});
    if constexpr (kHasScratch) {
      static_assert(kKinds[Count] == ArgumentKind::kScratch, "scratch is the last argument");
      kernel.arguments_.push_back({"scratch", ArgumentKind::kScratch});
    }
    kernel.function_ = reinterpret_cast<Kernel::Function>(function);
    kernel.invoke_ = [](Kernel::Function erased, Stream& stream, const Operand* operands) {
      invoke(reinterpret_cast<Signature*>(erased), stream, operands,
             std::index_sequence_for<Parameters...>());
    };
    return kernel;
  }

  // `sized_by` names the arguments the scratch function takes behind the number of workers.
  template <size_t Count, typename... Sizes, size_t SizeCount>
  static Kernel make(const char* name, Signature* function, const char* const (&names)[Count],
                     size_t (*scratch_function)(int, Sizes...),
                     const char* const (&sized_by)[SizeCount]) {
    static_assert(kHasScratch, "a kernel with a scratch function takes Scratch");
    static_assert(SizeCount == sizeof...(Sizes), "every argument of the scratch function is named");
    Kernel kernel = make(name, function, names);
    kernel.scratch_function_ = reinterpret_cast<Kernel::Function>(scratch_function);
    constexpr ArgumentKind kKinds[] = {Binding<Sizes>::kKind...};
    for (size_t i = 0; i < SizeCount; ++i) {
      kernel.scratch_operands_.push_back(find(kernel, sized_by[i], kKinds[i]));
    }
    kernel.measure_ = [](Kernel::Function erased, int workers, const Operand* operands,
                         const int* which) {
      return measure(reinterpret_cast<size_t (*)(int, Sizes...)>(erased), workers, operands, which,
                     std::index_sequence_for<Sizes...>());
    };
    return kernel;
  }

 private:
  template <size_t... I>
  static void invoke(Signature* function, Stream& stream, const Operand* operands,
                     std::index_sequence<I...>) {
    function(stream, Binding<Parameters>::get(operands[I])...);
  }

  template <typename... Sizes, size_t... I>
  static size_t measure(size_t (*function)(int, Sizes...), int workers, const Operand* operands,
                        const int* which, std::index_sequence<I...>) {
    return function(workers, Binding<Sizes>::get(operands[which[I]])...);
  }

  static constexpr bool is_view(ArgumentKind kind) { return kind <= ArgumentKind::kInOut; }

  static int find(const Kernel& kernel, const std::string& name, ArgumentKind kind) {
    for (size_t i = 0; i < kernel.arguments_.size(); ++i) {
      const Argument& argument = kernel.arguments_[i];
      if (argument.name != name) continue;
      if (argument.kind == kind || (is_view(argument.kind) && is_view(kind))) {
        return static_cast<int>(i);
      }
    }
    throw Error("ERR_BINDING",
                kernel.name_ + ": scratch must be sized by an argument, got " + name);
  }
};

}  // namespace siglip
