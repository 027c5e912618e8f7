// What a training step costs: multiply-adds counted twice, as is the custom, and bytes. Norms, GELU,
// softmax and biases are left out of the operations: their time is that of memory.
import type { ModelConfig, TowerConfig } from '../model';
import { parameterCount, parameterTable } from '../model';

/** A captioning decoder beside the towers (LocCa, arXiv 2403.19596), as SigLIP 2 trains with. */
export interface DecoderConfig {
  /** Blocks of self-attention, cross-attention and MLP. SigLIP 2 halves the text tower's. */
  readonly depth: number;
  /** Sequences for each image: captions, referring expressions, grounded captions. */
  readonly sequences: number;
}

/** Forward operations of one example. */
export interface Operations {
  readonly vision: number;
  readonly text: number;
  readonly decoder: number;
}

/** Tokens of an image at a fixed resolution. */
export function visionTokens({ vision }: ModelConfig): number {
  return vision.positions;
}

// Projections, scores and their values, MLP.
function block({ width, mlpWidth }: TowerConfig, tokens: number): number {
  return 8 * tokens * width ** 2 + 4 * tokens ** 2 * width + 4 * tokens * width * mlpWidth;
}

/** Forward operations of one example. */
export function forwardOperations(model: ModelConfig, decoder?: DecoderConfig): Operations {
  const { vision, text, embedding } = model;
  const tokens = visionTokens(model);
  const patches = 2 * tokens * 3 * vision.patch ** 2 * vision.width;
  const head =
    vision.pool === 'map'
      ? 4 * (tokens + 1) * vision.width ** 2 +
        4 * tokens * vision.width +
        4 * vision.width * vision.mlpWidth
      : 0;
  return {
    vision: patches + vision.depth * block(vision, tokens) + head,
    text: text.depth * block(text, text.length) + 2 * text.width * embedding,
    decoder: decoder === undefined ? 0 : decoderOperations(model, decoder, tokens),
  };
}

function decoderOperations(
  { vision, text }: ModelConfig,
  { depth, sequences }: DecoderConfig,
  tokens: number,
): number {
  const { width, length, vocabulary } = text;
  const cross =
    4 * length * width ** 2 + 4 * tokens * vision.width * width + 4 * length * tokens * width;
  const logits = 2 * length * width * vocabulary;
  return sequences * (depth * (block(text, length) + cross) + logits);
}

/** Parameters: of both towers and the two scalars, and of the decoder. */
export function parametersOf(model: ModelConfig, decoder?: DecoderConfig): number {
  const towers = parameterCount(parameterTable(model));
  if (decoder === undefined) return towers;
  const { width, mlpWidth, vocabulary } = model.text;
  const each = 6 * width ** 2 + 2 * model.vision.width * width + 2 * width * mlpWidth + 3 * width;
  return towers + decoder.depth * each + 2 * vocabulary * width;
}

/** Operations of the sigmoid loss of one rank's rows with all columns, gradients included: 6 B b E. */
export function lossOperations(batch: number, rows: number, embedding: number): number {
  return 6 * batch * rows * embedding;
}

/** Bytes kept for the backward of one example, `bytes` for each number. */
export interface ActivationBytes {
  /** Of all blocks at once. */
  readonly kept: number;
  /** With blocks checkpointed: their inputs, and the inside of the largest. */
  readonly checkpointed: number;
}

/**
 * What a block keeps: its input, both norms' outputs, query, key, value, attention's output, the sum
 * between (8 D), GELU's argument and value (2 M).
 */
export function activationBytes(model: ModelConfig, bytes: number): ActivationBytes {
  const inside = ({ width, mlpWidth }: TowerConfig, tokens: number): number =>
    bytes * tokens * (8 * width + 2 * mlpWidth);
  const towers = [
    { tower: model.vision, tokens: visionTokens(model) },
    { tower: model.text, tokens: model.text.length },
  ];
  // The MAP head works on keys and values of all tokens.
  const head = bytes * visionTokens(model) * 4 * model.vision.width;
  const kept = towers.reduce(
    (sum, { tower, tokens }) => sum + tower.depth * inside(tower, tokens),
    head,
  );
  const inputs = towers.reduce(
    (sum, { tower, tokens }) => sum + tower.depth * bytes * tokens * tower.width,
    head,
  );
  return {
    kept,
    checkpointed: inputs + Math.max(...towers.map(({ tower, tokens }) => inside(tower, tokens))),
  };
}
