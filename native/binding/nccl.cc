#include "binding/nccl.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <string>
#include <utility>

#include "binding/buffer.h"
#include "binding/environment.h"
#include "binding/errors.h"
#include "binding/values.h"
#include "runtime/error.h"

namespace siglip {
namespace {

// Far beyond any real group; it keeps a nonsensical length from being walked.
constexpr size_t kMaxTransfers = 1000000;
// A count beyond any memory, so that its bytes do not overflow.
constexpr int64_t kMaxCount = int64_t{1} << 50;

struct KindName {
  Transfer::Kind kind;
  const char* name;
};
constexpr std::array<KindName, 7> kKinds = {{
    {Transfer::Kind::kAllReduce, "allReduce"},
    {Transfer::Kind::kReduceScatter, "reduceScatter"},
    {Transfer::Kind::kAllGather, "allGather"},
    {Transfer::Kind::kReduce, "reduce"},
    {Transfer::Kind::kBroadcast, "broadcast"},
    {Transfer::Kind::kSend, "send"},
    {Transfer::Kind::kReceive, "receive"},
}};

Transfer::Kind to_kind(const Napi::Value& value) {
  const std::string name = to_text(value, "kind");
  for (const KindName& known : kKinds) {
    if (name == known.name) return known.kind;
  }
  throw Error("ERR_ARGUMENT", "kind must be one of NCCL's, got " + name);
}

int64_t bytes_of_one(Transfer::Kind kind) {
  const bool sums = kind == Transfer::Kind::kAllReduce || kind == Transfer::Kind::kReduceScatter ||
                    kind == Transfer::Kind::kReduce;
  return sums ? static_cast<int64_t>(sizeof(float)) : 1;
}

class DoneSettlement final : public Settlement {
 public:
  using Settlement::Settlement;
  bool resolve(Napi::Env env, Pending& pending) override {
    pending.deferred.Resolve(env.Undefined());
    return true;
  }
};

// Does something with a communicator on its device's thread.
class NcclJob final : public Job {
 public:
  using Body = std::function<void(NcclCommunicator&, Stream&)>;

  NcclJob(std::shared_ptr<NcclCommunicator> communicator, std::string name, bool queues, Body body,
          std::vector<BufferUse> uses, std::shared_ptr<Channel> channel, uint64_t id)
      : communicator_(std::move(communicator)),
        name_(std::move(name)),
        queues_(queues),
        body_(std::move(body)),
        uses_(std::move(uses)),
        channel_(std::move(channel)),
        settlement_(std::make_unique<DoneSettlement>(id)) {}

  std::string name() const override { return name_; }
  void run(Stream& stream) override {
    body_(*communicator_, stream);
    queued_ = queues_;
  }
  void done(std::exception_ptr error) noexcept override {
    try {
      if (queued_) communicator_->settle();
    } catch (...) {
      // Why it was cut short, which says more than what the device makes of it.
      error = std::current_exception();
    }
    uses_.clear();
    settlement_->fail(std::move(error));
    channel_->post(std::move(settlement_));
  }

 private:
  std::shared_ptr<NcclCommunicator> communicator_;
  std::string name_;
  bool queues_;  // whether the body is a run(), which has to be settled
  bool queued_ = false;
  Body body_;
  std::vector<BufferUse> uses_;
  std::shared_ptr<Channel> channel_;
  std::unique_ptr<DoneSettlement> settlement_;
};

struct Work {
  std::string name;
  bool queues = false;
  NcclJob::Body body;
  std::vector<BufferUse> uses;
};

// The promise of what `prepare` makes, queued on the device.
template <typename Prepare>
Napi::Value submit(Napi::Env env, Device& device,
                   const std::shared_ptr<NcclCommunicator>& communicator, const Prepare& prepare) {
  Environment& environment = Environment::of(env);
  const uint64_t id = environment.open(env, Napi::Value());
  const Napi::Promise promise = environment.promise_of(id);
  try {
    communicator->check_usable();
    Work work = prepare();
    device.submit(std::make_unique<NcclJob>(communicator, "nccl: " + work.name, work.queues,
                                            std::move(work.body), std::move(work.uses),
                                            environment.channel(), id));
  } catch (...) {
    environment.reject(env, id, std::current_exception());
  }
  return promise;
}

}  // namespace

Napi::Function NcclObject::define(Napi::Env env) {
  return DefineClass(
      env, kName,
      {InstanceMethod<&NcclObject::open>("open"), InstanceMethod<&NcclObject::run>("run"),
       InstanceMethod<&NcclObject::close>("close"), InstanceMethod<&NcclObject::abort>("abort")});
}

NcclObject::NcclObject(const Napi::CallbackInfo& info) : ObjectWrap<NcclObject>(info) {
  guarded(info.Env(), [&] {
    device_ = &to_device(info[0], "nccl: device");
    const double limit = to_number(info[1], "nccl: limitSeconds");
    if (!(limit > 0)) {
      throw Error("ERR_ARGUMENT", "nccl: limitSeconds must be positive, got " + text_of(info[1]));
    }
    communicator_ = make_nccl_communicator(*device_, limit);
  });
}

Napi::Value NcclObject::open(const Napi::CallbackInfo& info) {
  return submit(info.Env(), *device_, communicator_, [&]() -> Work {
    NcclId id;
    const Bytes given = to_bytes(info[0], "nccl: id");
    if (given.length != static_cast<int64_t>(id.size())) {
      throw Error("ERR_ARGUMENT", "nccl: id must have " + std::to_string(id.size()) +
                                      " bytes, got " + std::to_string(given.length));
    }
    std::memcpy(id.data(), given.data, id.size());
    const int64_t rank = to_size(info[1], "nccl: rank");
    const int64_t size = to_size(info[2], "nccl: size");
    if (rank >= size || size > INT32_MAX) {
      throw Error("ERR_ARGUMENT", "nccl: rank must be below size, got " + std::to_string(rank) +
                                      " of " + std::to_string(size));
    }
    size_ = static_cast<int>(size);
    return {"open",
            false,
            [id, rank, size](NcclCommunicator& communicator, Stream& stream) {
              communicator.open(stream, id, static_cast<int>(rank), static_cast<int>(size));
            },
            {}};
  });
}

// The address of `bytes` bytes at a place { buffer, offset }; null for null.
std::byte* NcclObject::place(const Napi::Value& value, std::string_view what, int64_t bytes,
                             std::vector<BufferUse>* uses) const {
  if (value.IsNull()) return nullptr;
  const Napi::Object object = to_object(value, what);
  const BufferObject& holder = unwrap<BufferObject>(object.Get("buffer"), what);
  const std::shared_ptr<Buffer>& buffer = holder.buffer(what);
  if (&holder.device() != device_) {
    throw Error("ERR_DEVICE", std::string(what) + " must be on " + device_->name() +
                                  ", got one on " + holder.device().name());
  }
  const int64_t offset = to_size(object.Get("offset"), what);
  check_range(what, offset, bytes, static_cast<int64_t>(buffer->bytes()));
  uses->emplace_back(buffer);
  return buffer->data() + offset;
}

Transfer NcclObject::transfer(const Napi::Value& value, std::vector<BufferUse>* uses) const {
  const Napi::Object object = to_object(value, "it");
  const Transfer::Kind kind = to_kind(object.Get("kind"));
  const int64_t count = to_size(object.Get("count"), "count");
  const int64_t peer = to_size(object.Get("peer"), "peer");
  if (count > kMaxCount) {
    throw Error("ERR_ARGUMENT", "count must fit the buffers, got " + std::to_string(count));
  }
  if (peer >= size_) {
    throw Error("ERR_ARGUMENT",
                "peer must be below " + std::to_string(size_) + ", got " + std::to_string(peer));
  }
  const int64_t bytes = count * bytes_of_one(kind);
  const bool scatters = kind == Transfer::Kind::kReduceScatter;
  const bool gathers = kind == Transfer::Kind::kAllGather;
  const Napi::Value from = object.Get("from");
  const Napi::Value into = object.Get("into");
  if (from.IsNull() != (kind == Transfer::Kind::kReceive) ||
      into.IsNull() != (kind == Transfer::Kind::kSend)) {
    throw Error("ERR_ARGUMENT",
                "from and into must be there, but that a send has no into and a receive no from");
  }
  return {kind, place(from, "from", scatters ? bytes * size_ : bytes, uses),
          place(into, "into", gathers ? bytes * size_ : bytes, uses), count,
          static_cast<int>(peer)};
}

Napi::Value NcclObject::run(const Napi::CallbackInfo& info) {
  return submit(info.Env(), *device_, communicator_, [&]() -> Work {
    const std::string name = to_text(info[0], "nccl: name");
    const Napi::Array list = to_array(info[1], "nccl: transfers", kMaxTransfers);
    Work work{name, true, {}, {}};
    std::vector<Transfer> transfers;
    transfers.reserve(list.Length());
    for (uint32_t i = 0; i < list.Length(); ++i) {
      const Napi::HandleScope scope(info.Env());
      transfers.push_back(located([&] { return "nccl: transfers[" + std::to_string(i) + "]: "; },
                                  [&] { return transfer(list.Get(i), &work.uses); }));
    }
    work.body = [name, transfers = std::move(transfers)](NcclCommunicator& communicator,
                                                         Stream& stream) {
      communicator.run(stream, name, transfers);
    };
    return work;
  });
}

Napi::Value NcclObject::close(const Napi::CallbackInfo& info) {
  return submit(info.Env(), *device_, communicator_, [&]() -> Work {
    return {
        "close", false, [](NcclCommunicator& communicator, Stream&) { communicator.close(); }, {}};
  });
}

Napi::Value NcclObject::abort(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    communicator_->abort(to_text(info[0], "nccl: reason"));
    return info.Env().Undefined();
  });
}

Napi::Value nccl_id(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const NcclId id = nccl_unique_id();
    Napi::Uint8Array bytes = Napi::Uint8Array::New(info.Env(), id.size());
    std::memcpy(bytes.Data(), id.data(), id.size());
    return bytes;
  });
}

Napi::Value describe_nccl(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const NcclDescription& found = nccl_description();
    Napi::Object nccl = Napi::Object::New(info.Env());
    if (found.missing.empty()) {
      nccl.Set("version", found.version);
    } else {
      nccl.Set("missing", found.missing);
    }
    return nccl;
  });
}

}  // namespace siglip
