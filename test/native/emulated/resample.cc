// The resize of a GPU, its blocks gone through thread by thread, beside that of the CPU: random pictures
// must come out with the same bytes. Argument: a seed.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "image/upload.h"
#include "runtime/memory.h"
#include "runtime/thread_pool.h"

using namespace siglip;

namespace {

const ResampleKernels kKernels = {cpu_generic::pixels_to_rgb, cpu_generic::resample_rows,
                                  cpu_generic::resample_columns, cpu_generic::pixels_to_planes,
                                  cpu_generic::pixels_to_floats};

class Host final : public MemorySource {
 public:
  DeviceKind kind() const override { return DeviceKind::kCpu; }
  std::shared_ptr<Memory> allocate(size_t bytes, Contents contents) override {
    return std::make_shared<Block>(bytes, contents);
  }
};

void run_rows(const device::ResamplePass& pass, const device::ResampleTile& tile) {
  using namespace device;
  static std::vector<uint32_t> held(kChunkWords);
  static std::vector<RowSums> sums(kResampleThreads);
  for (RowSums& of : sums) begin_sums(pass, of);
  const InputSpan span = inputs_of(pass, tile);
  for (int32_t begin = span.begin; begin < span.end; begin += kChunk) {
    const int count = std::min(span.end - begin, kChunk);
    std::fill(held.begin(), held.end(), 0xa5a5a5a5);
    for (int t = 0; t < kResampleThreads; ++t) load_chunk(pass, tile, begin, count, t, held.data());
    for (int t = 0; t < kResampleThreads; ++t) {
      add_chunk(pass, tile, begin, count, t, held.data(), sums[static_cast<size_t>(t)]);
    }
  }
  for (int t = 0; t < kResampleThreads; ++t) {
    store_sums(pass, tile, t, sums[static_cast<size_t>(t)]);
  }
}

void run(const device::ResampleWork& work) {
  for (int step = 0; step < device::kResampleSteps; ++step) {
    for (int64_t i = 0; i < work.counts[step]; ++i) {
      const device::ResampleTile& tile = work.tiles[step][i];
      const device::ResamplePass& pass = work.passes[tile.pass];
      if (step != 1) {
        run_rows(pass, tile);
        continue;
      }
      for (int t = 0; t < device::kResampleThreads; ++t) device::resample_column(pass, tile, t);
    }
  }
}

class Draw {
 public:
  explicit Draw(unsigned seed) : engine_(seed) {}
  int64_t in(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  // Most often small, now and then large.
  int64_t side() {
    constexpr int64_t kMost[] = {1, 4, 40, 300, 300, 700};
    return in(1, kMost[in(0, 5)]);
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace

int main(int, char** arguments) {
  Draw draw(static_cast<unsigned>(std::atoi(arguments[1])));
  ThreadPool pool(2);
  Stream stream(pool);
  Host host_memory;
  Arena arena(host_memory);
  const std::atomic<bool> never{false};
  for (int round = 0; round < 40; ++round) {
    const auto rounding = static_cast<Rounding>(draw.in(0, 1));
    const auto filter = rounding == Rounding::kTorchvision
                            ? static_cast<Filter>(draw.in(2, 3))
                            : static_cast<Filter>(draw.in(0, kFilters - 1));
    std::vector<Picture> pictures(static_cast<size_t>(draw.in(1, 6)));
    std::vector<std::vector<uint8_t>> pixels;
    std::vector<std::vector<uint8_t>> wanted;
    std::vector<std::vector<uint8_t>> results;
    for (Picture& picture : pictures) {
      picture.width = draw.side();
      picture.height = draw.side();
      switch (draw.in(0, 9)) {
        case 0:
          picture.width = draw.in(1, 6);
          picture.height = 100 * picture.width + draw.in(0, 5);
          break;
        case 1:
          picture.width = draw.in(2000, 9000);
          picture.height = draw.in(1, 9);
          break;
        default:
          break;
      }
      picture.to_width = draw.in(0, 5) == 0 ? picture.width : draw.in(1, 300);
      picture.to_height = draw.in(0, 5) == 0 ? picture.height : draw.in(1, 90);
      picture.format = static_cast<PixelFormat>(draw.in(0, kPixelFormats - 1));
      picture.background.present = draw.in(0, 1) == 1;
      for (uint8_t& color : picture.background.color) color = static_cast<uint8_t>(draw.in(0, 255));
      const bool hard = draw.in(0, 1) == 1;
      std::vector<uint8_t> bytes(
          static_cast<size_t>(picture.width * picture.height * channels_of(picture.format)));
      for (uint8_t& byte : bytes) {
        byte = static_cast<uint8_t>(hard ? 255 * draw.in(0, 1) : draw.in(0, 255));
      }
      pixels.push_back(std::move(bytes));
      const auto result = static_cast<size_t>(3 * picture.to_width * picture.to_height);
      wanted.emplace_back(result);
      results.emplace_back(result, uint8_t{77});
    }
    for (size_t i = 0; i < pictures.size(); ++i) {
      pictures[i].pixels = pixels[i].data();
      pictures[i].to = reinterpret_cast<std::byte*>(wanted[i].data());
    }
    const Recipe recipe = {filter, rounding, Layout::kBytes, 0, nullptr};
    prepare_pictures(stream, arena, kKernels, recipe, pictures, never);

    for (size_t i = 0; i < pictures.size(); ++i) {
      pictures[i].to = reinterpret_cast<std::byte*>(results[i].data());
    }
    Upload upload(filter, rounding, pictures);
    AxisPlans plans;
    upload.plan(stream, plans);
    const Block host(static_cast<size_t>(upload.bytes()));
    const Block device(static_cast<size_t>(upload.device_bytes()));
    std::memset(device.data(), 0xc3, device.bytes());
    const device::ResampleWork work = upload.pack(stream, host.data(), device.data(), never);
    std::memcpy(device.data(), host.data(), host.bytes());
    run(work);
    for (size_t i = 0; i < pictures.size(); ++i) {
      if (results[i] == wanted[i]) continue;
      const Picture& p = pictures[i];
      std::printf("round %d, filter %d, rounding %d: %ld x %ld to %ld x %ld, format %d differs\n",
                  round, static_cast<int>(filter), static_cast<int>(rounding),
                  static_cast<long>(p.width), static_cast<long>(p.height),
                  static_cast<long>(p.to_width), static_cast<long>(p.to_height),
                  static_cast<int>(p.format));
      return 1;
    }
  }
  std::puts("the same bytes");
  return 0;
}
