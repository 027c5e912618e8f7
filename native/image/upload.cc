#include "image/upload.h"

#include <algorithm>
#include <cstring>

#include "runtime/error.h"

#if defined(SIGLIP_CUDA)
#include "cuda/resample.h"
#endif

namespace siglip {
namespace {

constexpr int64_t kColors = 3;
constexpr int64_t kAlign = 16;
// Pixels and intermediates of one upload; a larger picture has one for itself.
constexpr int64_t kGroupBytes = int64_t{32} << 20;
// Weights that are kept from one upload to the next.
constexpr size_t kMostPlans = 256;
// What one thread copies at a stretch.
constexpr int64_t kPieceBytes = int64_t{1} << 19;

int64_t aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

int64_t parts(int64_t size, int64_t part) { return (size + part - 1) / part; }

int64_t pixel_bytes(const Picture& picture) {
  return picture.width * picture.height * channels_of(picture.format);
}

enum class Order { kNone, kRows, kColumns, kRowsColumns, kColumnsRows };

// The passes of a picture, as prepare_pictures() chooses them.
Order order_of(Rounding rounding, const Picture& picture) {
  const bool rows = picture.width != picture.to_width;
  const bool columns = picture.height != picture.to_height;
  const bool tall = rounding == Rounding::kPillow && picture.height > 100 * picture.width &&
                    picture.to_height < picture.height;
  if (rows && columns) return tall ? Order::kColumnsRows : Order::kRowsColumns;
  return rows ? Order::kRows : columns ? Order::kColumns : Order::kNone;
}

int64_t between_bytes(Order order, const Picture& picture) {
  if (order == Order::kRowsColumns) return kColors * picture.to_width * picture.height;
  if (order == Order::kColumnsRows) return kColors * picture.width * picture.to_height;
  return 0;
}

device::PixelLayout layout_of(const Picture& picture) {
  const auto channels = static_cast<int32_t>(channels_of(picture.format));
  const bool ink = picture.format == PixelFormat::kCmyk;
  const bool alpha =
      picture.format == PixelFormat::kGreyAlpha || picture.format == PixelFormat::kRgba;
  device::PixelLayout layout = {channels, ink, alpha && picture.background.present, {}};
  std::copy_n(picture.background.color, kColors, layout.background);
  return layout;
}

}  // namespace

std::vector<std::vector<Picture>> upload_groups(Rounding rounding,
                                                const std::vector<Picture>& pictures) {
  std::vector<std::vector<Picture>> groups;
  int64_t bytes = 0;
  for (const Picture& picture : pictures) {
    const int64_t more = pixel_bytes(picture) + between_bytes(order_of(rounding, picture), picture);
    if (groups.empty() || bytes + more > kGroupBytes) {
      groups.emplace_back();
      bytes = 0;
    }
    bytes += more;
    groups.back().push_back(picture);
  }
  return groups;
}

Upload::Upload(Filter filter, Rounding rounding, std::vector<Picture> pictures)
    : filter_(filter), rounding_(rounding), pictures_(std::move(pictures)) {
  for (const Picture& picture : pictures_) {
    add_picture(picture);
    pixels_at_.push_back(pixel_bytes_);
    pixel_bytes_ += aligned(pixel_bytes(picture));
  }
}

size_t Upload::axis_of(int64_t in, int64_t out) {
  const auto [found, added] = axis_of_sizes_.emplace(std::make_pair(in, out), axes_.size());
  if (added) axes_.push_back({in, out, nullptr, 0, 0});
  return found->second;
}

void Upload::add_picture(const Picture& picture) {
  const Order order = order_of(rounding_, picture);
  const device::PixelLayout raw = layout_of(picture);
  const device::PixelLayout rgb = {kColors, false, false, {}};
  const auto add = [&](bool rows, int64_t width, int64_t height, bool first, bool last) {
    const int64_t in = rows ? width : height;
    const int64_t out = rows ? picture.to_width : picture.to_height;
    const int64_t tiles = parts(out, device::kResampleThreads);
    const device::PixelLayout layout = first ? raw : rgb;
    Pass pass = {};
    pass.step = !rows ? 1 : first ? 0 : 2;
    pass.axis = axis_of(in, out);
    pass.on_device.from_stride = width * layout.channels;
    pass.on_device.to_stride = kColors * (rows ? out : width);
    pass.on_device.outputs = static_cast<int32_t>(out);
    pass.on_device.lines = static_cast<int32_t>(rows ? height : kColors * width);
    pass.on_device.tile_outputs = static_cast<int32_t>(parts(out, tiles));
    pass.on_device.layout = layout;
    pass.reads_pixels = first;
    pass.from_at = first ? pixel_bytes_ : between_bytes_;
    pass.to = last ? picture.to : nullptr;
    pass.to_at = between_bytes_;
    passes_.push_back(pass);
  };
  const auto& [width, height] = std::make_pair(picture.width, picture.height);
  switch (order) {
    case Order::kRowsColumns:
      add(true, width, height, true, false);
      add(false, picture.to_width, height, false, true);
      break;
    case Order::kColumnsRows:
      add(false, width, height, true, false);
      add(true, width, picture.to_height, false, true);
      break;
    case Order::kRows:
      add(true, width, height, true, true);
      break;
    default:
      add(false, width, height, true, true);
  }
  between_bytes_ += aligned(between_bytes(order, picture));
}

int64_t Upload::tiles_of(const Pass& pass) {
  const device::ResamplePass& of = pass.on_device;
  return pass.step == 1
             ? parts(of.lines, device::kResampleThreads) * parts(of.outputs, device::kTileRows)
             : parts(of.lines, device::kTileRows) * parts(of.outputs, of.tile_outputs);
}

void Upload::write_tiles(const Pass& pass, int32_t index, device::ResampleTile* to) {
  const device::ResamplePass& of = pass.on_device;
  const int64_t lines = pass.step == 1 ? device::kResampleThreads : device::kTileRows;
  const int64_t outputs = pass.step == 1 ? device::kTileRows : of.tile_outputs;
  for (int64_t line = 0; line < of.lines; line += lines) {
    for (int64_t output = 0; output < of.outputs; output += outputs) {
      *to++ = {index, static_cast<int32_t>(line), static_cast<int32_t>(output)};
    }
  }
}

void Upload::plan(Stream& stream, AxisPlans& plans) {
  if (plans.size() > kMostPlans) plans.clear();
  std::vector<AxisPlans::value_type*> missing;
  for (const Axis& axis : axes_) {
    const auto [found, added] = plans.try_emplace({axis.in, axis.out});
    if (added) missing.push_back(&*found);
  }
  stream.parallel(static_cast<int64_t>(missing.size()), [&](int64_t task, int) {
    auto& [sizes, plan] = *missing[static_cast<size_t>(task)];
    const auto& [in, out] = sizes;
    // A size that stays is copied.
    plan = in == out ? std::make_unique<AxisPlan>(Filter::kNearest, Rounding::kPillow, in, out)
                     : std::make_unique<AxisPlan>(filter_, rounding_, in, out);
  });
  if (stream.cancelled()) return;
  bytes_ = pixel_bytes_;
  for (Axis& axis : axes_) {
    axis.plan = plans.at({axis.in, axis.out}).get();
    const Taps& taps = axis.plan->taps();
    axis.longest = *std::max_element(taps.count, taps.count + taps.outputs);
    axis.at = bytes_;
    bytes_ += aligned(axis.out * (2 + axis.longest) * static_cast<int64_t>(sizeof(int32_t)));
  }
  passes_at_ = bytes_;
  bytes_ += aligned(static_cast<int64_t>(passes_.size() * sizeof(device::ResamplePass)));
  tiles_at_ = bytes_;
  for (const Pass& pass : passes_) {
    bytes_ += tiles_of(pass) * static_cast<int64_t>(sizeof(device::ResampleTile));
  }
  bytes_ = aligned(bytes_);
}

// The weights of all outputs for their first input, then for the second: neighbours are read together.
void Upload::write_axis(const Axis& axis, std::byte* to) {
  const Taps& taps = axis.plan->taps();
  const int64_t outputs = taps.outputs;
  auto* first = reinterpret_cast<int32_t*>(to);
  int32_t* weights = first + 2 * outputs;
  std::copy_n(taps.first, outputs, first);
  std::copy_n(taps.count, outputs, first + outputs);
  for (int64_t k = 0; k < axis.longest; ++k, weights += outputs) {
    for (int64_t i = 0; i < outputs; ++i) {
      weights[i] = k < taps.count[i] ? taps.weights[taps.offset[i] + k] : 0;
    }
  }
}

device::ResamplePass Upload::placed(const Pass& pass, std::byte* device) const {
  const auto pointer = [](std::byte* at) { return reinterpret_cast<uint8_t*>(at); };
  const Axis& axis = axes_[pass.axis];
  std::byte* const between = device + bytes_;
  device::ResamplePass result = pass.on_device;
  result.from = pointer((pass.reads_pixels ? device : between) + pass.from_at);
  result.to = pointer(pass.to != nullptr ? pass.to : between + pass.to_at);
  const auto* table = reinterpret_cast<const int32_t*>(device + axis.at);
  result.first = table;
  result.count = table + axis.out;
  result.weights = table + 2 * axis.out;
  result.shift = axis.plan->taps().shift;
  return result;
}

device::ResampleWork Upload::pack(Stream& stream, std::byte* to, std::byte* device,
                                  const std::atomic<bool>& abandoned) const {
  struct Piece {
    const uint8_t* from;
    std::byte* to;
    int64_t bytes;
  };
  std::vector<Piece> pieces;
  for (size_t i = 0; i < pictures_.size(); ++i) {
    const int64_t bytes = pixel_bytes(pictures_[i]);
    for (int64_t at = 0; at < bytes; at += kPieceBytes) {
      pieces.push_back(
          {pictures_[i].pixels + at, to + pixels_at_[i] + at, std::min(kPieceBytes, bytes - at)});
    }
  }
  const auto axes = static_cast<int64_t>(axes_.size());
  stream.parallel(axes + static_cast<int64_t>(pieces.size()), [&](int64_t task, int) {
    if (abandoned.load(std::memory_order_relaxed)) return;
    if (task < axes) {
      const Axis& axis = axes_[static_cast<size_t>(task)];
      return write_axis(axis, to + axis.at);
    }
    const Piece& piece = pieces[static_cast<size_t>(task - axes)];
    std::memcpy(piece.to, piece.from, static_cast<size_t>(piece.bytes));
  });

  auto* passes = reinterpret_cast<device::ResamplePass*>(to + passes_at_);
  auto* tiles = reinterpret_cast<device::ResampleTile*>(to + tiles_at_);
  device::ResampleWork work = {};
  work.passes = reinterpret_cast<device::ResamplePass*>(device + passes_at_);
  const auto* next = reinterpret_cast<device::ResampleTile*>(device + tiles_at_);
  for (size_t i = 0; i < passes_.size(); ++i) passes[i] = placed(passes_[i], device);
  for (int step = 0; step < device::kResampleSteps; ++step) {
    work.tiles[step] = next;
    for (size_t i = 0; i < passes_.size(); ++i) {
      if (passes_[i].step != step) continue;
      const int64_t count = tiles_of(passes_[i]);
      write_tiles(passes_[i], static_cast<int32_t>(i), tiles);
      tiles += count;
      next += count;
      work.counts[step] += count;
    }
  }
  return work;
}

void resize_uploaded(Stream& stream, const device::ResampleWork& work) {
#if defined(SIGLIP_CUDA)
  cuda::resample(stream, work);
#else
  static_cast<void>(stream);
  static_cast<void>(work);
  throw Error("ERR_DEVICE", "resize: this build must have CUDA kernels, got one without");
#endif
}

}  // namespace siglip
