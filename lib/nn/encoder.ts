import type { Tensor } from '../graph';
import { checkpoint, scope } from '../graph';
import type { BlockOptions, BlockParameters } from './block';
import { block, blockAtToken } from './block';
import type { LayerNormParameters } from './layer_norm';
import { layerNorm } from './layer_norm';

/** The blocks of a tower and its final norm. */
export interface EncoderParameters<Leaf> {
  readonly blocks: readonly BlockParameters<Leaf>[];
  readonly norm: LayerNormParameters<Leaf>;
}

export interface EncoderOptions extends BlockOptions {
  /**
   * Recompute the inside of every block in the backward instead of keeping it: same values, memory
   * for one block at a time, one more forward. Default false.
   */
  readonly checkpoint?: boolean | undefined;
  /** Give this token alone, (B, D), and skip what only the others need. Default: all tokens. */
  readonly onlyToken?: number | undefined;
}

/**
 * x (B, T, D), or (T, D) with `segments` -> blocks and final norm -> the same shape. Scopes `blocks.0`, `blocks.1`, … carry the taps
 * of {@link block}.
 */
export function encoder(
  x: Tensor,
  { blocks, norm }: EncoderParameters<Tensor>,
  options: EncoderOptions,
): Tensor {
  const { onlyToken } = options;
  const last = blocks.length - 1;
  const encoded = blocks.reduce((tokens, parameters, i) => {
    const body = (input: Tensor): Tensor =>
      i === last && onlyToken !== undefined
        ? blockAtToken(input, onlyToken, parameters, options)
        : block(input, parameters, options);
    return scope(`blocks.${String(i)}`, () =>
      (options.checkpoint === true ? checkpoint(body) : body)(tokens),
    );
  }, x);
  return scope('norm', () => layerNorm(encoded, norm, options));
}
