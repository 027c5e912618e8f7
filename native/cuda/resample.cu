#include "cuda/resample.h"

#include "runtime/cuda_context.h"

namespace siglip::cuda {
namespace {

using device::kChunk;
using device::kResampleThreads;
using device::ResamplePass;
using device::ResampleTile;

__global__ void __launch_bounds__(kResampleThreads)
    resample_rows(const ResamplePass* __restrict__ passes, const ResampleTile* __restrict__ tiles) {
  __shared__ uint32_t held[device::kChunkWords];
  const ResampleTile tile = tiles[blockIdx.x];
  const ResamplePass pass = passes[tile.pass];
  const auto thread = static_cast<int>(threadIdx.x);
  const device::InputSpan span = device::inputs_of(pass, tile);
  device::RowSums sums;
  device::begin_sums(pass, sums);
  for (int32_t begin = span.begin; begin < span.end; begin += kChunk) {
    const int count = span.end - begin < kChunk ? span.end - begin : kChunk;
    __syncthreads();
    device::load_chunk(pass, tile, begin, count, thread, held);
    __syncthreads();
    device::add_chunk(pass, tile, begin, count, thread, held, sums);
  }
  device::store_sums(pass, tile, thread, sums);
}

__global__ void __launch_bounds__(kResampleThreads)
    resample_columns(const ResamplePass* __restrict__ passes,
                     const ResampleTile* __restrict__ tiles) {
  const ResampleTile tile = tiles[blockIdx.x];
  const ResamplePass pass = passes[tile.pass];
  device::resample_column(pass, tile, static_cast<int>(threadIdx.x));
}

}  // namespace

void resample(Stream& stream, const device::ResampleWork& work) {
  for (int step = 0; step < device::kResampleSteps; ++step) {
    if (work.counts[step] == 0) continue;
    const bool rows = step != 1;
    const auto kernel = rows ? resample_rows : resample_columns;
    kernel<<<static_cast<unsigned>(work.counts[step]), kResampleThreads, 0, stream.cuda().stream>>>(
        work.passes, work.tiles[step]);
    check_launch(rows ? "resample_rows" : "resample_columns");
  }
}

}  // namespace siglip::cuda
