// A decoder token by token: what the tokens before have left of themselves are their keys and values.
import type { Spec, Tensor } from '../graph';
import { elements, expectSpec, int32, scope, uint8 } from '../graph';
import type { KeysAndValues } from '../nn';
import { decoderBlock, keysAndValues, layerNorm } from '../nn';
import * as ops from '../ops';
import type { DecoderConfig, DecoderParameters } from './decoder';

/** Keys and values of every block. */
export type DecoderCache<Leaf> = readonly KeysAndValues<Leaf>[];

/** The newest token of S sequences. */
export interface DecoderStepInput<Leaf> {
  /** (S) int32, the token that goes in. */
  readonly ids: Leaf;
  /** (S) int32, where it stands in its sequence. */
  readonly positions: Leaf;
  /** (S) int32: which row of the cache a sequence continues. */
  readonly parents: Leaf;
  /** (S, T) uint8: 1 for the positions up to this one. */
  readonly keyMask: Leaf;
  /** (S, T, D) each: the tokens before. */
  readonly cache: DecoderCache<Leaf>;
  /** (M, N, D) each, from {@link memoryCache}; S / M consecutive sequences share a memory. */
  readonly memory: DecoderCache<Leaf>;
}

/** Specs of a step of `sequences` sequences that read `images` memories of `tokens` tokens. */
export function decoderStepSpecs(
  { width, depth, length }: DecoderConfig,
  sequences: number,
  [images, tokens]: readonly [images: number, tokens: number],
): DecoderStepInput<Spec> {
  const layers = (...shape: number[]): DecoderCache<Spec> =>
    Array.from({ length: depth }, () => {
      const spec: Spec = { dtype: 'float32', shape };
      return { keys: spec, values: spec };
    });
  return {
    ids: int32(sequences),
    positions: int32(sequences),
    parents: int32(sequences),
    keyMask: uint8(sequences, length),
    cache: layers(sequences, length, width),
    memory: layers(images, tokens, width),
  };
}

/** Keys and values of a memory (M, N, memory width) in every block, (M, N, D) each. */
export function memoryCache(
  parameters: DecoderParameters<Tensor>,
  memory: Tensor,
): DecoderCache<Tensor> {
  return parameters.blocks.map(({ crossAttention }, i) =>
    scope(`decoder.blocks.${String(i)}.memory`, () => keysAndValues(memory, crossAttention)),
  );
}

/**
 * What `decoder` gives for the newest token of every sequence, in autoregressive mode, and the cache
 * with it.
 *
 * @returns `hidden` (S, D) after the final norm; `cache` (S, T, D) each
 * @throws ERR_SHAPE, ERR_DTYPE
 */
export function decoderStep(
  parameters: DecoderParameters<Tensor>,
  config: DecoderConfig,
  { ids, positions, parents, keyMask, cache, memory }: DecoderStepInput<Tensor>,
): { readonly hidden: Tensor; readonly cache: DecoderCache<Tensor> } {
  const { width, heads, length, layerNormEps: eps } = config;
  return scope('decoder', () => {
    const sequences = elements(ids);
    expectSpec('decoderStep', 'ids', ids, int32(sequences));
    const continued: KeysAndValues<Tensor>[] = [];
    // The parents' tokens, and the newest one in its place.
    const append = (before: Tensor, token: Tensor): Tensor =>
      ops.tokenWrite(
        ops.reshape(ops.embedding(ops.reshape(before, [sequences, length * width]), parents), [
          sequences,
          length,
          width,
        ]),
        ops.reshape(token, [sequences, width]),
        positions,
      );
    const embedded = ops.add(
      ops.embedding(parameters.tokens, ids),
      ops.embedding(parameters.positions, positions),
    );
    const decoded = parameters.blocks.reduce(
      (tokens, block, i) =>
        scope(`blocks.${String(i)}`, () =>
          decoderBlock(
            tokens,
            block,
            (normed) => {
              const own = keysAndValues(normed, block.selfAttention);
              const keys = append(cache[i].keys, own.keys);
              const values = append(cache[i].values, own.values);
              continued.push({ keys, values });
              return { keys, values, keyMask };
            },
            memory[i],
            { heads, eps },
          ),
        ),
      ops.reshape(embedded, [sequences, 1, width]),
    );
    const hidden = scope('norm', () => layerNorm(decoded, parameters.norm, { eps }));
    return { hidden: ops.reshape(hidden, [sequences, width]), cache: continued };
  });
}
