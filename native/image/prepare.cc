#include "image/prepare.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "image/claim.h"

namespace siglip {
namespace {

constexpr int64_t kColors = 3;
// What is kept between the two passes for pictures that are prepared together.
constexpr int64_t kGroupBytes = int64_t{64} << 20;
// The least work of a task, in samples read or written.
constexpr int64_t kTaskSamples = int64_t{1} << 16;
constexpr int64_t kLine = 64;

int64_t round_up(int64_t size, int64_t multiple) {
  return (size + multiple - 1) / multiple * multiple;
}

// Bytes of a row that resample_rows may read from or write to.
int64_t padded_row(int64_t width) {
  return round_up(kColors * width + std::max(kReadMargin, kWriteMargin), kLine);
}

// Rows of RGB.
struct Rows {
  const uint8_t* data = nullptr;
  int64_t stride = 0;
};

// One picture on its way through the passes: an optional first one into `between_`, and a last one
// whose rows are written out as the layout wants them.
class Preparation {
 public:
  Preparation(const Recipe& recipe, const ResampleKernels& kernels, const Picture& picture)
      : recipe_(recipe), kernels_(kernels), picture_(picture) {
    const bool rows = picture.width != picture.to_width;
    const bool columns = picture.height != picture.to_height;
    const bool tall = recipe.rounding == Rounding::kPillow &&
                      picture.height > 100 * picture.width && picture.to_height < picture.height;
    if (rows && columns) {
      first_ = tall ? Pass::kColumns : Pass::kRows;
      last_ = tall ? Pass::kRows : Pass::kColumns;
    } else if (columns && picture.format != PixelFormat::kRgb) {
      // Columns are read in any order, so their pixels are converted before.
      first_ = Pass::kConvert;
      last_ = Pass::kColumns;
    } else {
      last_ = rows ? Pass::kRows : columns ? Pass::kColumns : Pass::kConvert;
    }
    // Columns first, and not of RGB: rare enough to be converted as a whole.
    converted_ = first_ == Pass::kColumns && picture.format != PixelFormat::kRgb;
  }

  // What one resize, done by axis, needs to know.
  void plan(int axis) {
    if (axis == 0 && uses(Pass::kRows)) {
      row_plan_ = std::make_unique<AxisPlan>(recipe_.filter, recipe_.rounding, picture_.width,
                                             picture_.to_width);
    }
    if (axis == 1 && uses(Pass::kColumns)) {
      column_plan_ = std::make_unique<AxisPlan>(recipe_.filter, recipe_.rounding, picture_.height,
                                                picture_.to_height);
    }
  }

  int64_t between_bytes() const {
    if (first_ == Pass::kNone) return 0;
    return between_height() * padded_row(between_width()) +
           (converted_ ? picture_.height * padded_row(picture_.width) : 0);
  }
  void set_between(uint8_t* between) { between_ = between; }

  // Of a worker: rows to read, and rows to write.
  int64_t scratch_bytes() const {
    return kRowBlock * (padded_row(picture_.width) + padded_row(picture_.to_width) +
                        padded_row(between_width()));
  }

  // Steps run one after the other, the rows of a step in any order.
  int64_t step_rows(int step) const {
    switch (step) {
      case 0:
        return converted_ ? picture_.height : 0;
      case 1:
        return first_ == Pass::kNone ? 0 : between_height();
      default:
        return picture_.to_height;
    }
  }
  int64_t task_rows(int step) const {
    const int64_t samples =
        kColors * (step == 2 ? picture_.to_width : between_width()) +
        kColors * picture_.width * picture_.height / std::max(step_rows(step), int64_t{1});
    return round_up(std::max(kTaskSamples / samples, int64_t{1}), kRowBlock);
  }
  void run(int step, int64_t begin, int64_t end, uint8_t* scratch) const {
    if (step == 0) {
      for (int64_t y = begin; y < end; ++y) {
        convert(y, const_cast<uint8_t*>(converted().data) + y * converted().stride);
      }
    } else if (step == 1) {
      run_first(begin, end, scratch);
    } else {
      run_last(begin, end, scratch);
    }
  }

 private:
  enum class Pass { kNone, kConvert, kRows, kColumns };

  bool uses(Pass pass) const { return first_ == pass || last_ == pass; }

  int64_t between_width() const {
    return first_ == Pass::kRows ? picture_.to_width : picture_.width;
  }
  int64_t between_height() const {
    return first_ == Pass::kColumns ? picture_.to_height : picture_.height;
  }
  Rows between() const { return {between_, padded_row(between_width())}; }
  Rows converted() const {
    if (!converted_) return {picture_.pixels, kColors * picture_.width};
    return {between_ + between_height() * between().stride, padded_row(picture_.width)};
  }

  const uint8_t* source_row(int64_t y) const {
    return picture_.pixels + y * picture_.width * channels_of(picture_.format);
  }
  void convert(int64_t y, uint8_t* to) const {
    kernels_.pixels_to_rgb(picture_.format, picture_.background, source_row(y), picture_.width, to);
  }

  // The rows [y, y + count) of the picture, readable as resample_rows wants it.
  void read_rows(int64_t y, int64_t count, uint8_t* scratch, const uint8_t** rows) const {
    const int64_t stride = padded_row(picture_.width);
    const int64_t bytes = kColors * picture_.width;
    const int64_t behind = (picture_.height - y - count) * bytes;
    for (int64_t r = 0; r < count; ++r) {
      const bool in_place =
          picture_.format == PixelFormat::kRgb && behind + (count - 1 - r) * bytes >= kReadMargin;
      if (in_place) {
        rows[r] = source_row(y + r);
      } else {
        convert(y + r, scratch + r * stride);
        rows[r] = scratch + r * stride;
      }
    }
  }

  void run_first(int64_t begin, int64_t end, uint8_t* scratch) const {
    const Rows to = between();
    uint8_t* out = between_;
    if (first_ == Pass::kColumns) {
      const Rows from = converted();
      for (int64_t y = begin; y < end; ++y) {
        kernels_.resample_columns(column_plan_->taps(), y, from.data, from.stride,
                                  kColors * picture_.width, out + y * to.stride);
      }
      return;
    }
    if (first_ == Pass::kConvert) {
      for (int64_t y = begin; y < end; ++y) convert(y, out + y * to.stride);
      return;
    }
    for (int64_t y = begin; y < end; y += kRowBlock) {
      const int64_t count = std::min(kRowBlock, end - y);
      const uint8_t* rows[kRowBlock];
      uint8_t* results[kRowBlock];
      read_rows(y, count, scratch, rows);
      for (int64_t r = 0; r < count; ++r) results[r] = out + (y + r) * to.stride;
      kernels_.resample_rows(row_plan_->taps(), rows, count, results);
    }
  }

  void run_last(int64_t begin, int64_t end, uint8_t* scratch) const {
    const int64_t stride = padded_row(picture_.to_width);
    uint8_t* read_scratch = scratch + kRowBlock * stride;
    const Rows from =
        first_ == Pass::kNone ? Rows{picture_.pixels, kColors * picture_.width} : between();
    for (int64_t y = begin; y < end; y += kRowBlock) {
      const int64_t count = std::min(kRowBlock, end - y);
      const uint8_t* rows[kRowBlock];
      uint8_t* results[kRowBlock];
      for (int64_t r = 0; r < count; ++r) results[r] = scratch + r * stride;
      if (last_ == Pass::kRows) {
        if (first_ == Pass::kNone) {
          read_rows(y, count, read_scratch, rows);
        } else {
          for (int64_t r = 0; r < count; ++r) rows[r] = from.data + (y + r) * from.stride;
        }
        kernels_.resample_rows(row_plan_->taps(), rows, count, results);
      } else if (last_ == Pass::kColumns) {
        for (int64_t r = 0; r < count; ++r) {
          kernels_.resample_columns(column_plan_->taps(), y + r, from.data, from.stride,
                                    kColors * picture_.to_width, results[r]);
        }
      } else {
        for (int64_t r = 0; r < count; ++r) convert(y + r, results[r]);
      }
      for (int64_t r = 0; r < count; ++r) write(y + r, results[r]);
    }
  }

  void write(int64_t y, const uint8_t* row) const {
    const int64_t width = picture_.to_width;
    if (recipe_.layout == Layout::kBytes) {
      std::memcpy(picture_.to + y * kColors * width, row, static_cast<size_t>(kColors * width));
      return;
    }
    auto* to = reinterpret_cast<float*>(picture_.to);
    if (recipe_.layout == Layout::kPlanes) {
      const int64_t plane = picture_.to_height * width;
      float* red = to + y * width;
      kernels_.pixels_to_planes(recipe_.table, row, width, red, red + plane, red + 2 * plane);
      return;
    }
    const int64_t patch = recipe_.patch;
    const int64_t run = kColors * patch;
    // Where the first patch of this row of patches has its row y.
    float* first = to + y / patch * patch * kColors * width + y % patch * run;
    for (int64_t x = 0; x < width; x += patch) {
      kernels_.pixels_to_floats(recipe_.table, row + kColors * x, patch, first + x * run);
    }
  }

  const Recipe& recipe_;
  const ResampleKernels& kernels_;
  const Picture& picture_;
  Pass first_ = Pass::kNone;
  Pass last_ = Pass::kNone;
  bool converted_ = false;
  std::unique_ptr<AxisPlan> row_plan_;
  std::unique_ptr<AxisPlan> column_plan_;
  uint8_t* between_ = nullptr;
};

struct Task {
  const Preparation* preparation;
  int64_t begin;
  int64_t end;
};

// Prepares some pictures together, so that small ones fill the threads too.
void prepare_group(Stream& stream, Arena& arena, std::vector<Preparation>& group,
                   const std::atomic<bool>& abandoned) {
  constexpr int kAxes = 2;
  stream.parallel(kAxes * static_cast<int64_t>(group.size()), [&](int64_t task, int) {
    group[static_cast<size_t>(task / kAxes)].plan(static_cast<int>(task % kAxes));
  });

  int64_t between_bytes = 0;
  int64_t scratch_bytes = 0;
  for (const Preparation& preparation : group) {
    between_bytes += preparation.between_bytes();
    scratch_bytes = std::max(scratch_bytes, preparation.scratch_bytes());
  }
  const Claim memory(arena, static_cast<size_t>(between_bytes + stream.threads() * scratch_bytes));
  uint8_t* scratch = memory.data();
  uint8_t* between = scratch + stream.threads() * scratch_bytes;
  for (Preparation& preparation : group) {
    preparation.set_between(between);
    between += preparation.between_bytes();
  }

  std::vector<Task> tasks;
  for (int step = 0; step < 3; ++step) {
    tasks.clear();
    for (const Preparation& preparation : group) {
      const int64_t rows = preparation.step_rows(step);
      const int64_t grain = preparation.task_rows(step);
      for (int64_t y = 0; y < rows; y += grain) {
        tasks.push_back({&preparation, y, std::min(rows, y + grain)});
      }
    }
    stream.parallel(static_cast<int64_t>(tasks.size()), [&](int64_t index, int worker) {
      if (abandoned.load(std::memory_order_relaxed)) return;
      const Task& task = tasks[static_cast<size_t>(index)];
      task.preparation->run(step, task.begin, task.end, scratch + worker * scratch_bytes);
    });
  }
}

}  // namespace

int64_t prepared_bytes(Layout layout, int64_t width, int64_t height) {
  return kColors * width * height * (layout == Layout::kBytes ? 1 : int64_t{sizeof(float)});
}

void prepare_pictures(Stream& stream, Arena& arena, const ResampleKernels& kernels,
                      const Recipe& recipe, const std::vector<Picture>& pictures,
                      const std::atomic<bool>& abandoned) {
  std::vector<Preparation> group;
  int64_t bytes = 0;
  for (const Picture& picture : pictures) {
    if (abandoned.load(std::memory_order_relaxed) || stream.cancelled()) return;
    Preparation preparation(recipe, kernels, picture);
    const int64_t more = preparation.between_bytes();
    if (!group.empty() && bytes + more > kGroupBytes) {
      prepare_group(stream, arena, group, abandoned);
      group.clear();
      bytes = 0;
    }
    bytes += more;
    group.push_back(std::move(preparation));
  }
  if (!group.empty()) prepare_group(stream, arena, group, abandoned);
}

}  // namespace siglip
