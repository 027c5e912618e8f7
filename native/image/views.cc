#include "image/views.h"

#include <algorithm>
#include <cmath>

#include "image/claim.h"

namespace siglip {
namespace {

constexpr int64_t kColors = 3;
constexpr int64_t kLine = 64;
constexpr int kBoxPasses = 3;  // of a blur in one direction

int64_t round_up(int64_t size) { return (size + kLine - 1) / kLine * kLine; }

// Bytes of a row that resample_rows may read from or write to.
int64_t padded_row(int64_t width) {
  return round_up(kColors * width + std::max(kReadMargin, kWriteMargin));
}

float clamped(float x) { return x < 0.0F ? 0.0F : x > 255.0F ? 255.0F : x; }

float luma(const float* pixel) {
  return 0.2989F * pixel[0] + 0.587F * pixel[1] + 0.114F * pixel[2];
}

// x ← clamp(f x + (1 − f) other) for every sample; other(pixel) is one number per pixel.
template <typename Other>
void blend(float* pixels, int64_t count, float f, const Other& other) {
  for (int64_t i = 0; i < count; ++i) {
    float* pixel = pixels + kColors * i;
    const float with = (1.0F - f) * other(pixel);
    for (int64_t c = 0; c < kColors; ++c) pixel[c] = clamped(f * pixel[c] + with);
  }
}

float mean_luma(const float* pixels, int64_t count) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(luma(pixels + kColors * i));
  return static_cast<float>(sum / static_cast<double>(count));
}

// Turns the hue of a pixel by `turn` of a full circle, at most half of it.
void turn_hue(float* pixel, float turn) {
  const float red = pixel[0];
  const float green = pixel[1];
  const float blue = pixel[2];
  const float high = std::max({red, green, blue});
  const float range = high - std::min({red, green, blue});
  if (range == 0.0F) return;  // grey has no hue
  float sector = 0.0F;
  if (high == red) {
    sector = (green - blue) / range;
  } else if (high == green) {
    sector = 2.0F + (blue - red) / range;
  } else {
    sector = 4.0F + (red - green) / range;
  }
  sector += 6.0F * turn;
  // A colour at distance d, along the circle, from the middle of where it is full.
  const auto channel = [&](float middle) {
    float distance = std::abs(sector - middle);  // at most 8
    if (distance > 6.0F) distance -= 6.0F;
    distance = std::min(distance, 6.0F - distance);
    const float share = distance <= 1.0F ? 1.0F : distance >= 2.0F ? 0.0F : 2.0F - distance;
    return high - range * (1.0F - share);
  };
  pixel[0] = channel(0.0F);
  pixel[1] = channel(2.0F);
  pixel[2] = channel(4.0F);
}

void change_colors(const ImageView& view, int64_t count, float* pixels) {
  for (const Jitter jitter : view.order) {
    const float f = view.factors[static_cast<int>(jitter)];
    switch (jitter) {
      case Jitter::kBrightness:
        blend(pixels, count, f, [](const float*) { return 0.0F; });
        break;
      case Jitter::kContrast: {
        const float mean = mean_luma(pixels, count);
        blend(pixels, count, f, [=](const float*) { return mean; });
        break;
      }
      case Jitter::kSaturation:
        blend(pixels, count, f, luma);
        break;
      case Jitter::kHue:
        for (int64_t i = 0; i < count; ++i) turn_hue(pixels + kColors * i, f);
        break;
    }
  }
  if (view.grey) blend(pixels, count, 0.0F, luma);
}

// A box with borders between pixels: `whole` pixels to each side count fully, the next ones in part.
struct Box {
  int64_t whole;
  float weight;
  float edge;
};

Box box_of(double sigma) {
  const double variance = sigma * sigma / kBoxPasses;
  const double length = std::sqrt(12.0 * variance + 1.0);
  const double whole = std::floor((length - 1.0) / 2.0);
  const double part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance) /
                      (6.0 * (variance - (whole + 1.0) * (whole + 1.0)));
  const double weight = 1.0 / (2.0 * (whole + part) + 1.0);
  return {static_cast<int64_t>(whole), static_cast<float>(weight),
          static_cast<float>((1.0 - (2.0 * whole + 1.0) * weight) / 2.0)};
}

// to[i] = Σ box · from[i + d · step], for n values that have room to both sides.
void box_line(const Box& box, const float* from, int64_t step, int64_t n, float* to) {
  const int64_t outer = (box.whole + 1) * step;
  for (int64_t i = 0; i < n; ++i) to[i] = box.edge * (from[i - outer] + from[i + outer]);
  for (int64_t d = -box.whole; d <= box.whole; ++d) {
    const float* at = from + d * step;
    for (int64_t i = 0; i < n; ++i) to[i] += box.weight * at[i];
  }
}

// Pixels (size, size, 3) in the middle of (size + 2 margin)² of them.
class Blur {
 public:
  Blur(const Box& box, int64_t size)
      : box_(box), size_(size), row_((size + 2 * margin()) * kColors) {}

  static int64_t floats(const Box& box, int64_t size) {
    const int64_t side = size + 2 * (box.whole + 1);
    return side * side * kColors;
  }

  // Both have room for floats().
  void run(float* pixels, float* other) const {
    float* const inside = pixels;
    for (int64_t y = size_ - 1; y >= 0; --y) {  // from the last row on: they move up in memory
      std::copy_backward(inside + y * size_ * kColors, inside + (y + 1) * size_ * kColors,
                         at(pixels, y) + size_ * kColors);
    }
    for (int pass = 0; pass < kBoxPasses; ++pass) {
      for (int64_t y = 0; y < size_; ++y) {
        extend_row(at(pixels, y));
        box_line(box_, at(pixels, y), kColors, size_ * kColors, at(other, y));
      }
      std::swap(pixels, other);
    }
    for (int pass = 0; pass < kBoxPasses; ++pass) {
      extend_columns(pixels);
      for (int64_t y = 0; y < size_; ++y) {
        box_line(box_, at(pixels, y), row_, size_ * kColors, at(other, y));
      }
      std::swap(pixels, other);
    }
    // An even number of passes: the result lies where the pixels did.
    for (int64_t y = 0; y < size_; ++y) {
      std::copy(at(pixels, y), at(pixels, y) + size_ * kColors, inside + y * size_ * kColors);
    }
  }

 private:
  int64_t margin() const { return box_.whole + 1; }
  float* at(float* pixels, int64_t y) const {
    return pixels + (y + margin()) * row_ + margin() * kColors;
  }
  void extend_row(float* row) const {
    const float* last = row + (size_ - 1) * kColors;
    for (int64_t x = 1; x <= margin(); ++x) {
      std::copy(row, row + kColors, row - x * kColors);
      std::copy(last, last + kColors, row + (size_ - 1 + x) * kColors);
    }
  }
  void extend_columns(float* pixels) const {
    const float* first = at(pixels, 0);
    const float* last = at(pixels, size_ - 1);
    for (int64_t y = 1; y <= margin(); ++y) {
      std::copy(first, first + size_ * kColors, at(pixels, -y));
      std::copy(last, last + size_ * kColors, at(pixels, size_ - 1 + y));
    }
  }

  Box box_;
  int64_t size_;
  int64_t row_;
};

// What rendering a view needs of memory, in bytes from the beginning of a worker's part.
struct Workspace {
  int64_t read;     // kRowBlock rows of the crop
  int64_t between;  // its rows at the view's width
  int64_t resized;  // the rows of the view
  int64_t pixels;   // floats of the view
  int64_t blurred;  // as many again
  int64_t bytes;
};

Workspace workspace_of(const ImageView& view, int64_t size) {
  const int64_t floats = view.sigma > 0.0F
                             ? Blur::floats(box_of(static_cast<double>(view.sigma)), size)
                             : kColors * size * size;
  const int64_t float_bytes = round_up(floats * int64_t{sizeof(float)});
  Workspace w = {};
  w.between = w.read + kRowBlock * padded_row(view.width);
  w.resized = w.between + view.height * padded_row(size);
  w.pixels = w.resized + padded_row(size);
  w.blurred = w.pixels + float_bytes;
  w.bytes = w.blurred + float_bytes;
  return w;
}

class Rendering {
 public:
  Rendering(const ResampleKernels& kernels, Filter filter, int64_t size, const Source& source,
            const ImageView& view, uint8_t* memory)
      : kernels_(kernels),
        filter_(filter),
        size_(size),
        source_(source),
        view_(view),
        memory_(memory),
        workspace_(workspace_of(view, size)) {}

  void run() const {
    resize_rows();
    auto* pixels = reinterpret_cast<float*>(memory_ + workspace_.pixels);
    resize_columns(pixels);
    change_colors(view_, size_ * size_, pixels);
    if (view_.sigma > 0.0F) {
      const Box box = box_of(static_cast<double>(view_.sigma));
      Blur(box, size_).run(pixels, reinterpret_cast<float*>(memory_ + workspace_.blurred));
    }
    for (int64_t i = 0; i < size_ * size_ * kColors; ++i) {
      view_.to[i] = static_cast<uint8_t>(clamped(pixels[i]) + 0.5F);
    }
  }

 private:
  void resize_rows() const {
    const AxisPlan plan(filter_, Rounding::kPillow, view_.width, size_);
    const int64_t channels = channels_of(source_.format);
    const int64_t stride = padded_row(view_.width);
    for (int64_t y = 0; y < view_.height; y += kRowBlock) {
      const int64_t count = std::min(kRowBlock, view_.height - y);
      const uint8_t* rows[kRowBlock];
      uint8_t* results[kRowBlock];
      for (int64_t r = 0; r < count; ++r) {
        const int64_t first = (view_.top + y + r) * source_.width + view_.left;
        uint8_t* row = memory_ + workspace_.read + r * stride;
        kernels_.pixels_to_rgb(source_.format, source_.background,
                               source_.pixels + first * channels, view_.width, row);
        rows[r] = row;
        results[r] = memory_ + workspace_.between + (y + r) * padded_row(size_);
      }
      kernels_.resample_rows(plan.taps(), rows, count, results);
    }
  }

  void resize_columns(float* pixels) const {
    const AxisPlan plan(filter_, Rounding::kPillow, view_.height, size_);
    uint8_t* row = memory_ + workspace_.resized;
    for (int64_t y = 0; y < size_; ++y) {
      kernels_.resample_columns(plan.taps(), y, memory_ + workspace_.between, padded_row(size_),
                                kColors * size_, row);
      for (int64_t x = 0; x < size_; ++x) {
        const uint8_t* from = row + kColors * (view_.flip ? size_ - 1 - x : x);
        float* to = pixels + kColors * (y * size_ + x);
        for (int64_t c = 0; c < kColors; ++c) to[c] = from[c];
      }
    }
  }

  const ResampleKernels& kernels_;
  Filter filter_;
  int64_t size_;
  const Source& source_;
  const ImageView& view_;
  uint8_t* memory_;
  Workspace workspace_;
};

}  // namespace

void render_views(Stream& stream, Arena& arena, const ResampleKernels& kernels, Filter filter,
                  int64_t size, const std::vector<Source>& sources,
                  const std::vector<ImageView>& views, const std::atomic<bool>& abandoned) {
  int64_t bytes = 0;
  for (const ImageView& view : views) bytes = std::max(bytes, workspace_of(view, size).bytes);
  if (views.empty()) return;
  const Claim memory(arena, static_cast<size_t>(stream.threads() * bytes));
  uint8_t* scratch = memory.data();
  stream.parallel(static_cast<int64_t>(views.size()), [&](int64_t index, int worker) {
    if (abandoned.load(std::memory_order_relaxed)) return;
    const ImageView& view = views[static_cast<size_t>(index)];
    Rendering(kernels, filter, size, sources[view.source], view, scratch + worker * bytes).run();
  });
}

}  // namespace siglip
