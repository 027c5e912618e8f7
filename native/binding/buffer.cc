#include "binding/buffer.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "binding/environment.h"
#include "binding/errors.h"
#include "binding/values.h"
#include "runtime/device.h"
#include "runtime/error.h"
#include "runtime/pause.h"

namespace siglip {
namespace {

// What is copied into a typed array at a stretch: a few milliseconds of the JavaScript thread.
constexpr int64_t kPieceBytes = int64_t{16} << 20;
// Far beyond what any batch has.
constexpr size_t kMaxParts = 1000000;
// Longer writes to a GPU, up to a limit, go in pieces, each on its way while the next is copied; few,
// since each is a call of the driver.
constexpr int64_t kGradualPiece = int64_t{1} << 16;
constexpr int64_t kMaxGradualPieces = 16;
constexpr int64_t kMaxGradual = int64_t{16} << 20;
// Below this a read of an idle buffer is done on the spot.
constexpr int64_t kSmallRead = int64_t{1} << 20;

// A write into a buffer, from staging memory.
class WriteJob : public Job {
 public:
  std::string name() const override { return "a write"; }
  // What fails here fails for all that comes behind it.
  void done(std::exception_ptr) noexcept override {}

 protected:
  WriteJob(Device& device, const std::shared_ptr<Buffer>& buffer, int64_t offset)
      : device_(device), alone_(buffer->idle()), buffer_(buffer), offset_(offset) {}

  // Queues the copy of the bytes [from, end) of what is written.
  void send(const Staging& staged, size_t from, size_t end) {
    device_.copy_in(buffer_->data() + offset_ + from, staged, from, end - from, alone_);
  }

 private:
  Device& device_;
  bool alone_;  // before buffer_, which counts as a use
  BufferUse buffer_;
  int64_t offset_;
};

// Of memory that is complete.
class WholeWriteJob : public WriteJob {
 public:
  WholeWriteJob(Device& device, const std::shared_ptr<Buffer>& buffer, int64_t offset,
                int64_t bytes, std::unique_ptr<Staging> staged)
      : WriteJob(device, buffer, offset), bytes_(bytes), staged_(std::move(staged)) {}

  void run(Stream&) override { send(*staged_, 0, static_cast<size_t>(bytes_)); }

 private:
  int64_t bytes_;
  std::unique_ptr<Staging> staged_;
};

// Puts arrays one behind the other into staging memory, piece by piece, by two threads: who has them,
// and who takes the pieces that are there, as far as it has time.
class Filling {
 public:
  // The arrays have to be there until finish() returns.
  Filling(std::unique_ptr<Staging> staged, std::vector<Bytes> parts, size_t bytes, size_t piece)
      : staged_(std::move(staged)),
        parts_(std::move(parts)),
        bytes_(bytes),
        piece_(piece),
        count_((bytes + piece - 1) / piece),
        copied_(std::make_unique<std::atomic<bool>[]>(count_)) {
    int64_t end = 0;
    for (const Bytes& part : parts_) ends_.push_back(end += part.length);
  }

  const Staging& staged() const { return *staged_; }
  size_t bytes() const { return bytes_; }

  // Returns when all is copied.
  void finish() {
    while (copy_one()) {
    }
    for (size_t i = 0; i < count_; ++i) {
      wait_until([&] { return is_copied(i); });
    }
  }

  // Copies, or waits, until there are more than the first `taken` bytes; gives how many.
  size_t beyond(size_t taken) {
    const size_t first = taken / piece_;
    wait_until([&] { return is_copied(first) || (copy_one() && is_copied(first)); });
    size_t end = first + 1;
    while (end < count_ && is_copied(end)) ++end;
    return std::min(end * piece_, bytes_);
  }

 private:
  bool is_copied(size_t i) const { return copied_[i].load(std::memory_order_acquire); }

  template <typename Ready>
  static void wait_until(const Ready& ready) {
    constexpr int kPauses = 1000;
    for (int i = 1; !ready(); ++i) {
      pause();
      if (i % kPauses == 0) std::this_thread::yield();
    }
  }

  // A piece that nobody has begun; false when there is none.
  bool copy_one() {
    const size_t i = next_.fetch_add(1, std::memory_order_relaxed);
    if (i >= count_) return false;
    auto at = static_cast<int64_t>(i * piece_);
    const auto end = static_cast<int64_t>(std::min((i + 1) * piece_, bytes_));
    auto part =
        static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), at) - ends_.begin());
    for (; at < end; ++part) {
      const int64_t begin = ends_[part] - parts_[part].length;
      const int64_t length = std::min(end, ends_[part]) - at;
      if (length == 0) continue;
      std::memcpy(staged_->data() + at, parts_[part].data + (at - begin),
                  static_cast<size_t>(length));
      at += length;
    }
    copied_[i].store(true, std::memory_order_release);
    return true;
  }

  std::unique_ptr<Staging> staged_;
  std::vector<Bytes> parts_;
  std::vector<int64_t> ends_;  // of the parts
  size_t bytes_;
  size_t piece_;
  size_t count_;
  std::atomic<size_t> next_{0};
  std::unique_ptr<std::atomic<bool>[]> copied_;
};

// Copies to the device what is there while the rest is still put together.
class GradualWriteJob : public WriteJob {
 public:
  GradualWriteJob(Device& device, const std::shared_ptr<Buffer>& buffer, int64_t offset,
                  std::shared_ptr<Filling> filling)
      : WriteJob(device, buffer, offset), filling_(std::move(filling)) {}

  void run(Stream&) override {
    for (size_t sent = 0; sent < filling_->bytes();) {
      const size_t filled = filling_->beyond(sent);
      send(filling_->staged(), sent, filled);
      sent = filled;
    }
  }

 private:
  std::shared_ptr<Filling> filling_;
};

// Carries a copy of the memory as it was in queue order. It goes into the typed array on the
// JavaScript thread, since only there one can know that the array has not been detached.
class ReadSettlement : public Settlement {
 public:
  ReadSettlement(uint64_t id, int64_t bytes) : Settlement(id), bytes_(bytes) {}

  void take(std::unique_ptr<Staging> copy) { copy_ = std::move(copy); }
  int64_t bytes() const { return bytes_; }

  bool resolve(Napi::Env env, Pending& pending) override {
    const Bytes into = to_bytes(pending.into.Value(), "read: into");
    if (into.length < bytes_) {
      throw Error("ERR_ARGUMENT", "read: into must keep its " + std::to_string(bytes_) +
                                      " bytes until the end, got " + std::to_string(into.length));
    }
    const int64_t piece = std::min(kPieceBytes, bytes_ - done_);
    if (piece > 0)
      std::memcpy(into.data + done_, copy_->data() + done_, static_cast<size_t>(piece));
    done_ += piece;
    if (done_ < bytes_) return false;
    pending.deferred.Resolve(env.Undefined());
    return true;
  }

 private:
  int64_t bytes_;
  int64_t done_ = 0;
  std::unique_ptr<Staging> copy_;
};

class ReadJob : public Job {
 public:
  ReadJob(Device& device, std::shared_ptr<Buffer> buffer, int64_t offset,
          std::shared_ptr<Channel> channel, std::unique_ptr<ReadSettlement> settlement)
      : device_(device),
        offset_(offset),
        channel_(std::move(channel)),
        settlement_(std::move(settlement)) {
    buffer_.emplace(std::move(buffer));
  }

  std::string name() const override { return "a read"; }
  void run(Stream&) override {
    const auto bytes = static_cast<size_t>(settlement_->bytes());
    if (bytes == 0) return;
    std::unique_ptr<Staging> copy = device_.stage(bytes, true);
    device_.copy_out(*copy, (*buffer_)->data() + offset_, bytes);
    settlement_->take(std::move(copy));
  }
  void done(std::exception_ptr error) noexcept override {
    buffer_.reset();
    settlement_->fail(std::move(error));
    channel_->post(std::move(settlement_));
  }

 private:
  Device& device_;
  std::optional<BufferUse> buffer_;
  int64_t offset_;
  std::shared_ptr<Channel> channel_;
  std::unique_ptr<ReadSettlement> settlement_;
};

// Puts the parts one behind the other, and behind the work already queued for the buffer.
void write_parts(Device& device, const std::shared_ptr<Buffer>& buffer, int64_t offset,
                 int64_t length, const std::vector<Bytes>& parts) {
  const auto copy = [&](std::byte* to) {
    for (const Bytes& part : parts) {
      // A detached or empty array has no address, which memcpy must not be given.
      if (part.length > 0) std::memcpy(to, part.data, static_cast<size_t>(part.length));
      to += part.length;
    }
  };
  const bool gradual =
      device.kind() != DeviceKind::kCpu && length > 2 * kGradualPiece && length <= kMaxGradual;
  if (!gradual) return write_in_order(device, buffer, offset, length, copy);
  std::unique_ptr<Staging> staged = device.stage(static_cast<size_t>(length), false);
  if (!staged->pooled()) {
    copy(staged->data());
    return queue_write(device, buffer, offset, length, std::move(staged));
  }
  const auto filling = std::make_shared<Filling>(
      std::move(staged), parts, static_cast<size_t>(length),
      static_cast<size_t>(std::max(kGradualPiece, length / kMaxGradualPieces)));
  device.submit(std::make_unique<GradualWriteJob>(device, buffer, offset, filling));
  filling->finish();
}

// What is to be written: one array, or a list of them.
std::vector<Bytes> parse_parts(const Napi::Value& value) {
  if (!value.IsArray()) return {to_bytes(value, "write: data")};
  const Napi::Array list = to_array(value, "write: data", kMaxParts);
  std::vector<Napi::Value> values;
  values.reserve(list.Length());
  for (uint32_t i = 0; i < list.Length(); ++i) values.push_back(list.Get(i));
  // Reading the list may run JavaScript, which may take memory away; from here on none runs.
  std::vector<Bytes> parts;
  parts.reserve(values.size());
  for (const Napi::Value& part : values) parts.push_back(to_bytes(part, "write: data"));
  return parts;
}

}  // namespace

void check_range(std::string_view who, int64_t offset, int64_t bytes, int64_t available) {
  if (offset < 0 || bytes < 0 || bytes > available || offset > available - bytes) {
    throw Error("ERR_ARGUMENT", std::string(who) + ": the range must lie inside " +
                                    std::to_string(available) + " bytes, got " +
                                    std::to_string(bytes) + " bytes at " + std::to_string(offset));
  }
}

void queue_write(Device& device, const std::shared_ptr<Buffer>& buffer, int64_t offset,
                 int64_t bytes, std::unique_ptr<Staging> staged) {
  device.submit(std::make_unique<WholeWriteJob>(device, buffer, offset, bytes, std::move(staged)));
}

Napi::Function BufferObject::define(Napi::Env env) {
  return DefineClass(
      env, kName,
      {InstanceAccessor<&BufferObject::bytes>("bytes"),
       InstanceAccessor<&BufferObject::device_name>("device"),
       InstanceAccessor<&BufferObject::is_disposed>("disposed"),
       InstanceMethod<&BufferObject::write>("write"), InstanceMethod<&BufferObject::read>("read"),
       InstanceMethod<&BufferObject::dispose>("dispose")});
}

BufferObject::BufferObject(const Napi::CallbackInfo& info) : ObjectWrap<BufferObject>(info) {
  guarded(info.Env(), [&] {
    bytes_ = to_size(info[0], "buffer: bytes");
    if (bytes_ == 0) throw Error("ERR_ARGUMENT", "buffer: bytes must be at least 1, got 0");
    device_ = &to_device(info[1], "buffer: device");
    const bool unfilled = !info[2].IsUndefined() && to_flag(info[2], "buffer: unfilled");
    const Contents contents = unfilled ? Contents::kUndefined : Contents::kZeros;
    buffer_ = std::make_shared<Buffer>(*device_, static_cast<size_t>(bytes_), contents);
    napi_type_tag_object(info.Env(), info.This(), &kTag);
    int64_t total = 0;
    napi_adjust_external_memory(info.Env(), bytes_, &total);
  });
}

void BufferObject::Finalize(Napi::BasicEnv env) { release(env); }

void BufferObject::release(napi_env env) {
  if (!buffer_) return;
  buffer_.reset();
  int64_t total = 0;
  napi_adjust_external_memory(env, -bytes_, &total);
}

const std::shared_ptr<Buffer>& BufferObject::buffer(std::string_view what) const {
  if (!buffer_)
    throw Error("ERR_DISPOSED", std::string(what) + " must be alive, got a disposed one");
  return buffer_;
}

Napi::Value BufferObject::bytes(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), static_cast<double>(bytes_));
}

Napi::Value BufferObject::device_name(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), device_->name());
}

Napi::Value BufferObject::is_disposed(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), !buffer_);
}

Napi::Value BufferObject::write(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const std::shared_ptr<Buffer> target = buffer("write: the buffer");
    const int64_t offset = to_size(info[0], "write: offset");
    const std::vector<Bytes> parts = parse_parts(info[1]);
    int64_t length = 0;
    for (const Bytes& part : parts) length += part.length;
    check_range("write", offset, length, bytes_);
    write_parts(*device_, target, offset, length, parts);
    return info.Env().Undefined();
  });
}

Napi::Value BufferObject::read(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Environment& environment = Environment::of(env);
  const uint64_t id = environment.open(env, info[1].IsObject() ? info[1] : Napi::Value());
  const Napi::Promise promise = environment.promise_of(id);
  try {
    const std::shared_ptr<Buffer> source = buffer("read: the buffer");
    const int64_t offset = to_size(info[0], "read: offset");
    const Bytes into = to_bytes(info[1], "read: into");
    check_range("read", offset, into.length, bytes_);
    const bool direct = device_->kind() == DeviceKind::kCpu && source->idle();
    if (direct && into.length <= kSmallRead) {
      if (into.length > 0) {
        std::memcpy(into.data, source->data() + offset, static_cast<size_t>(into.length));
      }
      environment.resolve(env, id);
    } else {
      device_->submit(std::make_unique<ReadJob>(*device_, source, offset, environment.channel(),
                                                std::make_unique<ReadSettlement>(id, into.length)));
    }
  } catch (...) {
    environment.reject(env, id, std::current_exception());
  }
  return promise;
}

Napi::Value BufferObject::dispose(const Napi::CallbackInfo& info) {
  release(info.Env());
  return info.Env().Undefined();
}

}  // namespace siglip
