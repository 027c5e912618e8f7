// Non-overlapping patches, each flattened as (colour, row, column); an incomplete patch at the right
// or the bottom is dropped.
import type { NdArray } from './nd_array';
import { zeros } from './nd_array';

/** Calls visit(index in patches, index in images) for every value of every whole patch. */
function forEachPixel(
  images: readonly number[],
  patch: number,
  visit: (patchIndex: number, imageIndex: number) => void,
): void {
  const [B, C, height, width] = images;
  const gh = Math.floor(height / patch);
  const gw = Math.floor(width / patch);
  let patchIndex = 0;
  for (let b = 0; b < B; b++) {
    for (let py = 0; py < gh; py++) {
      for (let px = 0; px < gw; px++) {
        for (let c = 0; c < C; c++) {
          for (let y = 0; y < patch; y++) {
            for (let x = 0; x < patch; x++) {
              visit(patchIndex, ((b * C + c) * height + py * patch + y) * width + px * patch + x);
              patchIndex++;
            }
          }
        }
      }
    }
  }
}

/** images (B, C, height, width) -> (B, N, C·P·P). */
export function patchify(images: NdArray, patch: number): NdArray {
  const [B, C, height, width] = images.shape;
  const N = Math.floor(height / patch) * Math.floor(width / patch);
  const patches = zeros([B, N, C * patch * patch]);
  forEachPixel(images.shape, patch, (p, i) => {
    patches.data[p] = images.data[i];
  });
  return patches;
}

/** The transpose: zero in the dropped border. */
export function patchifyBackward(dpatches: NdArray, images: NdArray, patch: number): NdArray {
  const dimages = zeros(images.shape);
  forEachPixel(images.shape, patch, (p, i) => {
    dimages.data[i] = dpatches.data[p];
  });
  return dimages;
}
