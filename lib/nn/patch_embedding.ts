// Patches to tokens: a linear layer over flattened patches, which is a convolution of kernel and
// stride P. The two layouts differ in the order of a patch and so in the columns of the weight:
// (colour, row, column) for images, (row, column, colour) for NaFlex rows.
import type { Tensor } from '../graph';
import * as ops from '../ops';
import type { LinearParameters } from './linear';
import { linear } from './linear';

/**
 * images (B, 3, height, width) -> tokens (B, N, D), N = ⌊height/P⌋ · ⌊width/P⌋ row by row. Pixels
 * beyond the last whole patch are dropped.
 */
export function imagePatchEmbedding(
  images: Tensor,
  patch: number,
  parameters: LinearParameters<Tensor>,
): Tensor {
  return linear(ops.patchify(images, patch), parameters);
}

/** NaFlex rows (…, P·P·3) -> tokens (…, D). */
export function rowPatchEmbedding(rows: Tensor, parameters: LinearParameters<Tensor>): Tensor {
  return linear(rows, parameters);
}
