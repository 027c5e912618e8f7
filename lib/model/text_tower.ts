// Text tower: token embedding + positions -> blocks -> final norm -> pool -> linear head with bias.
// Bidirectional and without any mask: padding attends and is attended to, so the length of a text
// and the id of its padding are part of the model.
// Source: big_vision models/proj/image_text/text_transformer.py.
import type { Spec, Tensor } from '../graph';
import { expectSpec, int32, scope, tap } from '../graph';
import { addPositions, encoder, linear, mapHead } from '../nn';
import * as ops from '../ops';
import type { ModelConfig, TextConfig } from './config';
import type { TextParameters } from './parameters';
import { EMBEDDING_EPS } from './vision_tower';

/** What a text tower gives. */
export interface TextOutput {
  /** (B, T, D) after the final norm; absent when `pooledOnly` skipped them. */
  readonly tokens: Tensor | undefined;
  /** (B, D) the vector that goes into the head. */
  readonly pooled: Tensor;
  /** (B, E) the head's output. */
  readonly projected: Tensor;
  /** (B, E) `projected` at unit length. */
  readonly embedding: Tensor;
}

export interface TextTowerOptions {
  /** Recompute blocks in the backward instead of keeping their inside. Default false. */
  readonly checkpoint?: boolean | undefined;
  /**
   * Compute the last block for the pooled token alone where the pool is `last` or `first`: the same
   * embedding for most of a block's work less, without `tokens`. Default false.
   */
  readonly pooledOnly?: boolean | undefined;
}

/** Spec of a tower's input, for compile(): ids (B, T) int32. */
export function textInputSpec({ text }: ModelConfig, batch: number): Spec {
  return int32(batch, text.length);
}

/**
 * Records a text tower under the scope `text`.
 *
 * Taps: `embedded`, `blocks.{i}.attention`, `blocks.{i}.attentionResidual`, `blocks.{i}.mlp`,
 * `blocks.{i}.output`, `tokens`, `pooled`, `projected`, `embedding`.
 *
 * @param ids - (B, T) int32 in [0, vocabulary), padded to the config's length
 * @throws ERR_SHAPE, ERR_DTYPE when the ids do not fit the config.
 */
export function textTower(
  parameters: TextParameters<Tensor>,
  config: ModelConfig,
  ids: Tensor,
  options: TextTowerOptions = {},
): TextOutput {
  const { text, layerNormEps: eps } = config;
  return scope('text', () => {
    expectSpec('textTower', 'ids', ids, int32(ids.shape[0] ?? 1, text.length));
    const embedded = tap(
      'embedded',
      addPositions(ops.embedding(parameters.tokens, ids), parameters.positions),
    );
    const onlyToken = options.pooledOnly === true ? pooledToken(text) : undefined;
    const encoded = encoder(embedded, parameters, {
      heads: text.heads,
      eps,
      checkpoint: options.checkpoint,
      onlyToken,
    });
    const tokens = onlyToken === undefined ? tap('tokens', encoded) : undefined;
    const pooled = tap('pooled', tokens === undefined ? encoded : pool(tokens, parameters, config));
    const projected = tap(
      'projected',
      scope('head', () => linear(pooled, parameters.head)),
    );
    const embedding = tap('embedding', ops.l2Normalize(projected, { eps: EMBEDDING_EPS }));
    return { tokens, pooled, projected, embedding };
  });
}

// Index of the only token the pool reads, where there is one.
function pooledToken({ pool: kind, length }: TextConfig): number | undefined {
  if (kind === 'last') return length - 1;
  return kind === 'first' ? 0 : undefined;
}

function pool(
  tokens: Tensor,
  parameters: TextParameters<Tensor>,
  { text, layerNormEps: eps }: ModelConfig,
): Tensor {
  const token = pooledToken(text);
  if (token !== undefined) return ops.tokenSelect(tokens, token);
  const { pool: head } = parameters;
  if (head === undefined) return ops.tokenMean(tokens);
  return scope('pool', () => mapHead(tokens, head, { heads: text.heads, eps }));
}
