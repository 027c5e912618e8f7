#include "binding/image.h"

#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "binding/buffer.h"
#include "binding/environment.h"
#include "binding/errors.h"
#include "binding/table.h"
#include "binding/values.h"
#include "image/prepare.h"
#include "image/upload.h"
#include "image/views.h"
#include "runtime/device.h"
#include "runtime/error.h"
#include "runtime/memory.h"

namespace siglip {
namespace {

constexpr size_t kMaxPictures = 1000000;
constexpr int64_t kMaxViewSide = 65536;
constexpr double kMaxSigma = 1000.0;
constexpr int64_t kTableValues = 768;

// A whole number of [low, high].
int64_t to_ranged(const Napi::Value& value, std::string_view what, int64_t low, int64_t high) {
  const int64_t number = to_integer(value, what);
  if (number >= low && number <= high) return number;
  throw Error("ERR_ARGUMENT", std::string(what) + " must be in [" + std::to_string(low) + ", " +
                                  std::to_string(high) + "], got " + std::to_string(number));
}

int64_t to_side(const Napi::Value& value, std::string_view what) {
  return to_ranged(value, what, 1, kMaxSide);
}

Background to_background(const Napi::Value& value) {
  if (value.IsNull()) return {};
  const int64_t color = to_ranged(value, "background", 0, 0xffffff);
  return {true,
          {static_cast<uint8_t>(color >> 16), static_cast<uint8_t>(color >> 8),
           static_cast<uint8_t>(color)}};
}

// What JavaScript said of pixels. Their memory is asked for last, when no getter can run any more that
// would take it away.
struct SourceRequest {
  Source source;
  Napi::Value data;
  bool shared;
};

SourceRequest parse_source(const Napi::Object& object) {
  SourceRequest request = {};
  Source& source = request.source;
  source.width = to_side(object.Get("width"), "width");
  source.height = to_side(object.Get("height"), "height");
  source.format =
      static_cast<PixelFormat>(to_ranged(object.Get("format"), "format", 0, kPixelFormats - 1));
  source.background = to_background(object.Get("background"));
  request.data = object.Get("data");
  request.shared = to_flag(object.Get("shared"), "shared");
  return request;
}

struct PictureRequest {
  SourceRequest source;
  Picture picture;
  int64_t offset;
};

PictureRequest parse_picture(const Napi::Value& value) {
  const Napi::Object object = to_object(value, "it");
  PictureRequest request = {};
  request.source = parse_source(object);
  Picture& picture = request.picture;
  static_cast<Source&>(picture) = request.source.source;
  picture.to_width = to_side(object.Get("toWidth"), "toWidth");
  picture.to_height = to_side(object.Get("toHeight"), "toHeight");
  request.offset = to_size(object.Get("offset"), "offset");
  return request;
}

struct RecipeRequest {
  Recipe recipe;
  std::vector<float> table;
};

RecipeRequest parse_recipe(const Napi::Value& value) {
  const Napi::Object object = to_object(value, "recipe");
  RecipeRequest request = {};
  Recipe& recipe = request.recipe;
  recipe.filter = static_cast<Filter>(to_ranged(object.Get("filter"), "filter", 0, kFilters - 1));
  recipe.rounding = static_cast<Rounding>(to_ranged(object.Get("rounding"), "rounding", 0, 1));
  recipe.layout = static_cast<Layout>(to_ranged(object.Get("layout"), "layout", 0, 2));
  const bool cubic_or_linear =
      recipe.filter == Filter::kBilinear || recipe.filter == Filter::kBicubic;
  if (recipe.rounding == Rounding::kTorchvision && !cubic_or_linear) {
    throw Error("ERR_ARGUMENT",
                "filter must be bilinear or bicubic with the rounding of "
                "torchvision, got number " +
                    std::to_string(static_cast<int>(recipe.filter)));
  }
  if (recipe.layout == Layout::kPatches) recipe.patch = to_side(object.Get("patch"), "patch");
  if (recipe.layout == Layout::kBytes) return request;
  const Napi::Value table = object.Get("table");
  if (!table.IsTypedArray() ||
      table.As<Napi::TypedArray>().TypedArrayType() != napi_float32_array ||
      table.As<Napi::Float32Array>().ElementLength() != kTableValues) {
    throw Error("ERR_ARGUMENT",
                "table must be a Float32Array of 768 values, got " + text_of(table));
  }
  const auto values = table.As<Napi::Float32Array>();
  request.table.assign(values.Data(), values.Data() + kTableValues);
  return request;
}

class ImageSettlement : public Settlement {
 public:
  using Settlement::Settlement;
  bool resolve(Napi::Env env, Pending& pending) override {
    pending.deferred.Resolve(env.Undefined());
    return true;
  }
};

Error cut_short(const std::string& name) {
  return {"ERR_ABORTED", name + ": it must end before its environment, got the end of it"};
}

// Copies of pixels that JavaScript may change meanwhile.
using Copies = std::vector<std::unique_ptr<Block>>;

class ImageJob : public Job {
 public:
  // Ends early once the flag is set. What takes the settlement settles it, unless it throws.
  using Work = std::function<void(Stream&, const std::atomic<bool>& abandoned,
                                  std::unique_ptr<ImageSettlement>& settlement)>;

  ImageJob(std::string name, Work work, Copies copies, std::shared_ptr<Channel> channel,
           uint64_t id)
      : name_(std::move(name)),
        work_(std::move(work)),
        copies_(std::move(copies)),
        channel_(std::move(channel)),
        settlement_(std::make_unique<ImageSettlement>(id)) {}

  std::string name() const override { return name_; }
  void run(Stream& stream) override {
    const std::lock_guard<std::mutex> memory(channel_->memory());
    if (!channel_->closed()) work_(stream, channel_->closed(), settlement_);
    if (channel_->closed() || stream.cancelled()) throw cut_short(name_);
  }
  // Lets go of everything first: who awaits the promise finds buffers idle.
  void done(std::exception_ptr error) noexcept override {
    work_ = nullptr;
    copies_.clear();
    if (!settlement_) return;
    settlement_->fail(std::move(error));
    channel_->post(std::move(settlement_));
  }

 private:
  std::string name_;
  Work work_;
  Copies copies_;
  std::shared_ptr<Channel> channel_;
  std::unique_ptr<ImageSettlement> settlement_;
};

// On a GPU, behind the write of an upload: the resize of its pictures. The last job of a call settles it.
class ResizeJob : public Job {
 public:
  ResizeJob(const device::ResampleWork& work, const std::shared_ptr<Buffer>& uploaded,
            const std::shared_ptr<Buffer>& into, std::shared_ptr<Channel> channel,
            std::shared_ptr<std::exception_ptr> failure,
            std::unique_ptr<ImageSettlement> settlement)
      : work_(work),
        channel_(std::move(channel)),
        // A place for an exception, not one: NOLINTNEXTLINE(bugprone-throw-keyword-missing)
        failure_(std::move(failure)),
        settlement_(std::move(settlement)) {
    uploaded_.emplace(uploaded);
    into_.emplace(into);
  }

  std::string name() const override { return "prepare"; }
  void run(Stream& stream) override {
    if (channel_->closed()) throw cut_short(name());
    resize_uploaded(stream, work_);
  }
  void done(std::exception_ptr error) noexcept override {
    uploaded_.reset();
    into_.reset();
    if (!*failure_) *failure_ = std::move(error);
    if (!settlement_) return;
    settlement_->fail(*failure_);
    channel_->post(std::move(settlement_));
  }

 private:
  device::ResampleWork work_;
  std::optional<BufferUse> uploaded_;
  std::optional<BufferUse> into_;
  std::shared_ptr<Channel> channel_;
  std::shared_ptr<std::exception_ptr> failure_;  // the first of the call
  std::unique_ptr<ImageSettlement> settlement_;
};

// Where prepared pictures go: an array of JavaScript, or memory of a device.
struct Destination {
  Bytes bytes;
  Device* device = nullptr;
  std::shared_ptr<Buffer> buffer;  // null for an array
};

Destination to_destination(const Napi::Value& value) {
  bool tagged = false;
  const bool buffer =
      value.IsObject() &&
      napi_check_object_type_tag(value.Env(), value, &BufferObject::kTag, &tagged) == napi_ok &&
      tagged;
  if (!buffer) return {to_bytes(value, "into"), &Device::cpu(), nullptr};
  const BufferObject& object = unwrap<BufferObject>(value, "into");
  const std::shared_ptr<Buffer>& memory = object.buffer("into");
  return {{memory->data(), static_cast<int64_t>(memory->bytes())}, &object.device(), memory};
}

// Packs pictures on the threads of the CPU and queues on `device` what makes them; see Upload.
ImageJob::Work upload_work(const Recipe& recipe, std::vector<Picture> pictures,
                           const Destination& into, std::shared_ptr<Channel> channel) {
  if (recipe.layout != Layout::kBytes) {
    throw Error("ERR_ARGUMENT", "layout must be bytes on a GPU, got number " +
                                    std::to_string(static_cast<int>(recipe.layout)));
  }
  auto use = std::make_shared<BufferUse>(into.buffer);
  return [filter = recipe.filter, rounding = recipe.rounding, pictures = std::move(pictures), into,
          use = std::move(use),
          channel = std::move(channel)](Stream& stream, const std::atomic<bool>& abandoned,
                                        std::unique_ptr<ImageSettlement>& settlement) {
    const auto failure = std::make_shared<std::exception_ptr>();
    std::vector<std::vector<Picture>> groups = upload_groups(rounding, pictures);
    AxisPlans plans;
    for (size_t i = 0; i < groups.size(); ++i) {
      Upload upload(filter, rounding, std::move(groups[i]));
      upload.plan(stream, plans);
      if (abandoned || stream.cancelled()) return;
      const auto device_bytes = static_cast<size_t>(upload.device_bytes());
      const auto uploaded =
          std::make_shared<Buffer>(*into.device, device_bytes, Contents::kUndefined);
      std::unique_ptr<Staging> staged =
          into.device->stage(static_cast<size_t>(upload.bytes()), true);
      const device::ResampleWork work =
          upload.pack(stream, staged->data(), uploaded->data(), abandoned);
      if (abandoned || stream.cancelled()) return;
      queue_write(*into.device, uploaded, 0, upload.bytes(), std::move(staged));
      const bool last = i + 1 == groups.size();
      into.device->submit(std::make_unique<ResizeJob>(
          work, uploaded, into.buffer, channel, failure,
          last ? std::move(settlement) : std::unique_ptr<ImageSettlement>()));
    }
  };
}

// The pixels of a request, or a copy of them.
const uint8_t* pixels_of(const SourceRequest& request, Copies* copies) {
  const Source& source = request.source;
  const Bytes data = to_bytes(request.data, "data");
  const int64_t needed = source.width * source.height * channels_of(source.format);
  if (data.length != needed) {
    throw Error("ERR_ARGUMENT", "data must have " + std::to_string(needed) + " bytes, got " +
                                    std::to_string(data.length));
  }
  if (request.shared) return reinterpret_cast<const uint8_t*>(data.data);
  auto copy = std::make_unique<Block>(static_cast<size_t>(needed));
  std::memcpy(copy->data(), data.data, static_cast<size_t>(needed));
  copies->push_back(std::move(copy));
  return reinterpret_cast<const uint8_t*>(copies->back()->data());
}

// Gives a picture its source and its destination.
void place(const PictureRequest& request, const RecipeRequest& recipe, const Bytes& into,
           Picture* picture, Copies* copies) {
  picture->pixels = pixels_of(request.source, copies);
  const Layout layout = recipe.recipe.layout;
  const int64_t patch = recipe.recipe.patch;
  if (layout == Layout::kPatches &&
      (picture->to_width % patch != 0 || picture->to_height % patch != 0)) {
    throw Error("ERR_ARGUMENT", "toWidth and toHeight must be multiples of " +
                                    std::to_string(patch) + ", got " +
                                    std::to_string(picture->to_width) + " and " +
                                    std::to_string(picture->to_height));
  }
  const int64_t bytes = prepared_bytes(layout, picture->to_width, picture->to_height);
  check_range("into", request.offset, bytes, into.length);
  picture->to = into.data + request.offset;
  if (layout != Layout::kBytes && reinterpret_cast<uintptr_t>(picture->to) % alignof(float) != 0) {
    throw Error("ERR_ARGUMENT", "offset must be a multiple of the element size, got " +
                                    std::to_string(request.offset));
  }
}

float to_factor(const Napi::Value& value, std::string_view what, double low, double high) {
  const double number = to_number(value, what);
  if (number >= low && number <= high) return static_cast<float>(number);
  throw Error("ERR_ARGUMENT", std::string(what) + " must be in [" + std::to_string(low) + ", " +
                                  std::to_string(high) + "], got " + std::to_string(number));
}

// Reads one view of `sources`; where it goes is not known yet.
ImageView parse_view(const Napi::Value& value, const std::vector<SourceRequest>& sources) {
  const Napi::Object object = to_object(value, "it");
  ImageView view = {};
  const auto images = static_cast<int64_t>(sources.size());
  const int64_t image = to_ranged(object.Get("image"), "image", 0, images - 1);
  view.source = static_cast<size_t>(image);
  const Source& source = sources[view.source].source;
  view.left = to_ranged(object.Get("left"), "left", 0, source.width - 1);
  view.top = to_ranged(object.Get("top"), "top", 0, source.height - 1);
  view.width = to_ranged(object.Get("width"), "width", 1, source.width - view.left);
  view.height = to_ranged(object.Get("height"), "height", 1, source.height - view.top);
  view.flip = to_flag(object.Get("flip"), "flip");
  const Napi::Array order = to_array(object.Get("order"), "order", kJitters);
  for (uint32_t i = 0; i < order.Length(); ++i) {
    view.order.push_back(static_cast<Jitter>(to_ranged(order.Get(i), "order", 0, kJitters - 1)));
  }
  view.factors[0] = to_factor(object.Get("brightness"), "brightness", 0.0, 255.0);
  view.factors[1] = to_factor(object.Get("contrast"), "contrast", 0.0, 255.0);
  view.factors[2] = to_factor(object.Get("saturation"), "saturation", 0.0, 255.0);
  view.factors[3] = to_factor(object.Get("hue"), "hue", -0.5, 0.5);
  view.grey = to_flag(object.Get("grey"), "grey");
  view.sigma = to_factor(object.Get("sigma"), "sigma", 0.0, kMaxSigma);
  return view;
}

// Queues a job that `make` reads from JavaScript and gives its promise. `make` puts what the job reads
// and fills into the array it gets, which keeps them from being collected.
template <typename Make>
Napi::Value queue_images(const Napi::Env& env, const std::string& name, const Make& make) {
  Environment& environment = Environment::of(env);
  const Napi::Array kept = Napi::Array::New(env);
  const uint64_t id = environment.open(env, kept);
  const Napi::Promise promise = environment.promise_of(id);
  try {
    located([&] { return name + ": "; },
            [&] {
              Copies copies;
              ImageJob::Work work = make(kept, &copies);
              Device::cpu().submit(std::make_unique<ImageJob>(
                  name, std::move(work), std::move(copies), environment.channel(), id));
            });
  } catch (...) {
    environment.reject(env, id, std::current_exception());
  }
  return promise;
}

// body(i) for every member of a list, named in errors.
template <typename Body>
void for_each_named(const std::string& list, size_t count, const Body& body) {
  for (size_t i = 0; i < count; ++i) {
    located([&] { return list + "[" + std::to_string(i) + "]: "; },
            [&] { body(static_cast<uint32_t>(i)); });
  }
}

}  // namespace

Napi::Value prepare_images(const Napi::CallbackInfo& info) {
  return queue_images(
      info.Env(), "prepare", [&](Napi::Array kept, Copies* copies) -> ImageJob::Work {
        const Napi::Array list = to_array(info[0], "images", kMaxPictures);
        std::vector<PictureRequest> requests;
        for_each_named("images", list.Length(), [&](uint32_t i) {
          requests.push_back(parse_picture(list.Get(i)));
          kept.Set(i, requests.back().source.data);
        });
        RecipeRequest request = parse_recipe(info[1]);
        kept.Set(kept.Length(), info[2]);

        // No JavaScript runs from here on.
        const Destination into = to_destination(info[2]);
        std::vector<Picture> pictures;
        for_each_named("images", requests.size(), [&](uint32_t i) {
          pictures.push_back(requests[i].picture);
          place(requests[i], request, into.bytes, &pictures.back(), copies);
        });
        if (into.device->kind() == DeviceKind::kCuda) {
          return upload_work(request.recipe, std::move(pictures), into,
                             Environment::of(info.Env()).channel());
        }
        auto use = into.buffer ? std::make_shared<BufferUse>(into.buffer) : nullptr;
        return [request = std::move(request), pictures = std::move(pictures), use = std::move(use)](
                   Stream& stream, const std::atomic<bool>& abandoned, auto&) {
          Recipe recipe = request.recipe;
          recipe.table = request.table.data();
          prepare_pictures(stream, Device::cpu().arena(), resample_kernels(), recipe, pictures,
                           abandoned);
        };
      });
}

Napi::Value render_views(const Napi::CallbackInfo& info) {
  return queue_images(info.Env(), "views", [&](Napi::Array kept, Copies* copies) {
    const Napi::Array images = to_array(info[0], "images", kMaxPictures);
    std::vector<SourceRequest> requests;
    for_each_named("images", images.Length(), [&](uint32_t i) {
      requests.push_back(parse_source(to_object(images.Get(i), "it")));
      kept.Set(i, requests.back().data);
    });
    const Napi::Array list = to_array(info[1], "views", kMaxPictures);
    std::vector<ImageView> views;
    for_each_named("views", list.Length(),
                   [&](uint32_t i) { views.push_back(parse_view(list.Get(i), requests)); });
    const Napi::Object recipe = to_object(info[2], "recipe");
    const auto filter =
        static_cast<Filter>(to_ranged(recipe.Get("filter"), "filter", 0, kFilters - 1));
    const int64_t size = to_ranged(recipe.Get("size"), "size", 1, kMaxViewSide);
    kept.Set(kept.Length(), info[3]);

    // No JavaScript runs from here on.
    const Bytes into = to_bytes(info[3], "into");
    const int64_t view_bytes = prepared_bytes(Layout::kBytes, size, size);
    check_range("into", 0, static_cast<int64_t>(views.size()) * view_bytes, into.length);
    for (size_t i = 0; i < views.size(); ++i) {
      views[i].to = reinterpret_cast<uint8_t*>(into.data) + static_cast<int64_t>(i) * view_bytes;
    }
    std::vector<Source> sources;
    for_each_named("images", requests.size(), [&](uint32_t i) {
      sources.push_back(requests[i].source);
      sources.back().pixels = pixels_of(requests[i], copies);
    });
    return [filter, size, sources = std::move(sources), views = std::move(views)](
               Stream& stream, const std::atomic<bool>& abandoned, auto&) {
      render_views(stream, Device::cpu().arena(), resample_kernels(), filter, size, sources, views,
                   abandoned);
    };
  });
}

}  // namespace siglip
