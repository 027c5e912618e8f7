#include "binding/image.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
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
#include "runtime/device.h"
#include "runtime/error.h"
#include "runtime/memory.h"

namespace siglip {
namespace {

constexpr size_t kMaxPictures = 1000000;
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

bool to_flag(const Napi::Value& value, std::string_view what) {
  if (value.IsBoolean()) return value.As<Napi::Boolean>().Value();
  throw Error("ERR_ARGUMENT", std::string(what) + " must be a boolean, got " + text_of(value));
}

// What JavaScript said of one picture. Its memory is asked for last, when no getter can run any more
// that would take it away.
struct PictureRequest {
  Picture picture;
  Napi::Value data;
  bool shared;
  int64_t offset;
};

PictureRequest parse_picture(const Napi::Value& value) {
  const Napi::Object object = to_object(value, "it");
  PictureRequest request = {};
  Picture& picture = request.picture;
  picture.width = to_side(object.Get("width"), "width");
  picture.height = to_side(object.Get("height"), "height");
  picture.format =
      static_cast<PixelFormat>(to_ranged(object.Get("format"), "format", 0, kPixelFormats - 1));
  picture.background = to_background(object.Get("background"));
  picture.to_width = to_side(object.Get("toWidth"), "toWidth");
  picture.to_height = to_side(object.Get("toHeight"), "toHeight");
  request.data = object.Get("data");
  request.shared = to_flag(object.Get("shared"), "shared");
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

class PrepareSettlement : public Settlement {
 public:
  using Settlement::Settlement;
  bool resolve(Napi::Env env, Pending& pending) override {
    pending.deferred.Resolve(env.Undefined());
    return true;
  }
};

class PrepareJob : public Job {
 public:
  PrepareJob(RecipeRequest request, std::vector<Picture> pictures,
             std::vector<std::unique_ptr<Block>> copies, std::shared_ptr<Channel> channel,
             std::unique_ptr<PrepareSettlement> settlement)
      : request_(std::move(request)),
        pictures_(std::move(pictures)),
        copies_(std::move(copies)),
        channel_(std::move(channel)),
        settlement_(std::move(settlement)) {
    request_.recipe.table = request_.table.data();
  }

  std::string name() const override { return "prepare"; }
  void run(Stream& stream) override {
    const std::lock_guard<std::mutex> memory(channel_->memory());
    if (!channel_->closed()) {
      prepare_pictures(stream, Device::cpu().arena(), resample_kernels(), request_.recipe,
                       pictures_, channel_->closed());
    }
    if (channel_->closed() || stream.cancelled()) {
      throw Error("ERR_ABORTED", "prepare: it must end before its environment, got the end of it");
    }
  }
  void done(std::exception_ptr error) noexcept override {
    copies_.clear();
    settlement_->fail(std::move(error));
    channel_->post(std::move(settlement_));
  }

 private:
  RecipeRequest request_;
  std::vector<Picture> pictures_;
  std::vector<std::unique_ptr<Block>> copies_;
  std::shared_ptr<Channel> channel_;
  std::unique_ptr<PrepareSettlement> settlement_;
};

// Gives a picture its source and its destination.
void place(const PictureRequest& request, const RecipeRequest& recipe, const Bytes& into,
           Picture* picture, std::vector<std::unique_ptr<Block>>* copies) {
  const Bytes data = to_bytes(request.data, "data");
  const int64_t needed = picture->width * picture->height * channels_of(picture->format);
  if (data.length != needed) {
    throw Error("ERR_ARGUMENT", "data must have " + std::to_string(needed) + " bytes, got " +
                                    std::to_string(data.length));
  }
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
  picture->pixels = reinterpret_cast<const uint8_t*>(data.data);
  if (request.shared) return;
  auto copy = std::make_unique<Block>(static_cast<size_t>(needed));
  std::memcpy(copy->data(), data.data, static_cast<size_t>(needed));
  picture->pixels = reinterpret_cast<const uint8_t*>(copy->data());
  copies->push_back(std::move(copy));
}

}  // namespace

Napi::Value prepare_images(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Environment& environment = Environment::of(env);
  // Keeps what the job reads and fills from being collected.
  const Napi::Array kept = Napi::Array::New(env);
  const uint64_t id = environment.open(env, kept);
  const Napi::Promise promise = environment.promise_of(id);
  try {
    located([] { return std::string("prepare: "); },
            [&] {
              const Napi::Array list = to_array(info[0], "images", kMaxPictures);
              std::vector<PictureRequest> requests;
              const auto where = [](uint32_t i) { return "images[" + std::to_string(i) + "]: "; };
              for (uint32_t i = 0; i < list.Length(); ++i) {
                requests.push_back(
                    located([&] { return where(i); }, [&] { return parse_picture(list.Get(i)); }));
                kept.Set(i, requests.back().data);
              }
              RecipeRequest recipe = parse_recipe(info[1]);
              kept.Set(kept.Length(), info[2]);

              // No JavaScript runs from here on.
              const Bytes into = to_bytes(info[2], "into");
              std::vector<Picture> pictures;
              std::vector<std::unique_ptr<Block>> copies;
              for (size_t i = 0; i < requests.size(); ++i) {
                located([&] { return where(static_cast<uint32_t>(i)); },
                        [&] {
                          pictures.push_back(requests[i].picture);
                          place(requests[i], recipe, into, &pictures.back(), &copies);
                        });
              }
              Device::cpu().submit(std::make_unique<PrepareJob>(
                  std::move(recipe), std::move(pictures), std::move(copies), environment.channel(),
                  std::make_unique<PrepareSettlement>(id)));
            });
  } catch (...) {
    environment.reject(env, id, std::current_exception());
  }
  return promise;
}

}  // namespace siglip
