// A small data set held in memory: images, texts, and which texts may describe which image.
import type { Philox4x32 } from '../array/random';
import { SiglipError } from '../errors';
import type { Example, Source } from './source';

/**
 * Columns of a small data set. An image shows a concept, and any text of the concept describes it.
 * Columns on a SharedArrayBuffer reach a worker thread without a copy.
 */
export interface PairTable {
  readonly name: string;
  /** Pixels per side, S. */
  readonly size: number;
  /** RGB of the images, (N, S, S, 3). */
  readonly pixels: Uint8Array;
  /** Concept of each image, 0 to C − 1, (N). */
  readonly concepts: Int32Array;
  /** All texts, M of them. */
  readonly texts: readonly string[];
  /** Token ids of the texts, (M, T), when a tokenizer is at hand. */
  readonly tokens?: Int32Array | undefined;
  /** Texts of concept c: candidates `starts[c]` to `starts[c + 1]`, (C + 1). */
  readonly starts: Int32Array;
  /** Text of each candidate: an index into `texts`. */
  readonly candidates: Int32Array;
  /** How often each candidate is drawn, relative to the others of its concept. */
  readonly weights: Float32Array;
}

/** One text of a concept, for {@link pairTable}. */
export interface WeightedText {
  readonly text: string;
  /** Relative to the concept's other texts, positive. */
  readonly weight: number;
}

/** Memory that threads share, filled with these bytes. */
function shared(bytes: Uint8Array): Uint8Array {
  const copy = new Uint8Array(new SharedArrayBuffer(bytes.length));
  copy.set(bytes);
  return copy;
}

/**
 * Builds a {@link PairTable}.
 *
 * @param pixels images, (N, S, S, 3), copied
 * @param concepts concept of each image, 0 to C − 1
 * @param texts the texts of each of the C concepts; equal strings are stored once
 * @param tokenize gives (M, T) token ids for M texts; left out, batches carry texts only
 * @throws ERR_SHAPE, ERR_DATA when the parts do not fit or a concept that is shown has no text
 */
export function pairTable(options: {
  name: string;
  size: number;
  pixels: Uint8Array;
  concepts: ArrayLike<number>;
  texts: readonly (readonly WeightedText[])[];
  tokenize?: ((texts: readonly string[]) => Int32Array) | undefined;
}): PairTable {
  const { name, size, pixels, texts: byConcept, tokenize } = options;
  const concepts = Int32Array.from(options.concepts);
  const expected = concepts.length * size * size * 3;
  if (pixels.length !== expected) {
    throw new SiglipError(
      'ERR_SHAPE',
      `pairTable: pixels of ${name} must be (${String(concepts.length)}, ${String(size)}, ` +
        `${String(size)}, 3), ${String(expected)} bytes, got ${String(pixels.length)}`,
    );
  }
  for (const concept of concepts) {
    if ((byConcept[concept]?.length ?? 0) === 0) {
      throw new SiglipError(
        'ERR_DATA',
        `pairTable: concept ${String(concept)} of ${name} must have a text, got none`,
      );
    }
  }
  const indexOf = new Map<string, number>();
  const starts = new Int32Array(byConcept.length + 1);
  const candidates: number[] = [];
  const weights: number[] = [];
  for (const [concept, list] of byConcept.entries()) {
    for (const { text, weight } of list) {
      if (!(weight > 0) || !Number.isFinite(weight)) {
        throw new SiglipError(
          'ERR_DATA',
          `pairTable: weight of ${JSON.stringify(text)} must be positive, got ${String(weight)}`,
        );
      }
      const index = indexOf.get(text) ?? indexOf.size;
      indexOf.set(text, index);
      candidates.push(index);
      weights.push(weight);
    }
    starts[concept + 1] = candidates.length;
  }
  const texts = [...indexOf.keys()];
  const tokens = tokenize?.(texts);
  if (tokens !== undefined && (texts.length === 0 || tokens.length % texts.length !== 0)) {
    throw new SiglipError(
      'ERR_SHAPE',
      `pairTable: tokens must be (${String(texts.length)}, T), got ${String(tokens.length)} ids`,
    );
  }
  return {
    name,
    size,
    pixels: shared(pixels),
    concepts,
    texts,
    tokens,
    starts,
    candidates: Int32Array.from(candidates),
    weights: Float32Array.from(weights),
  };
}

/** Reads a {@link PairTable} as a {@link Source}: an example is an image and a text drawn by weight. */
export class PairSource implements Source {
  readonly name: string;
  readonly length: number;
  readonly concepts: Int32Array;
  private readonly tokenCount: number;

  constructor(private readonly table: PairTable) {
    this.name = table.name;
    this.length = table.concepts.length;
    this.concepts = table.concepts;
    this.tokenCount = (table.tokens?.length ?? 0) / Math.max(1, table.texts.length);
  }

  /** @throws ERR_ARGUMENT when the index is out of range */
  read(index: number, random: Philox4x32): Example {
    const { size, pixels, tokens, texts } = this.table;
    const concept = this.concepts[index];
    if (!Number.isInteger(index) || index < 0 || index >= this.length) {
      throw new SiglipError(
        'ERR_ARGUMENT',
        `PairSource.read: index must be from 0 to ${String(this.length - 1)}, got ${String(index)}`,
      );
    }
    const text = this.drawText(concept, random);
    const bytes = size * size * 3;
    return {
      pixels: pixels.subarray(index * bytes, (index + 1) * bytes),
      size,
      text: texts[text],
      tokens: tokens?.subarray(text * this.tokenCount, (text + 1) * this.tokenCount),
    };
  }

  private drawText(concept: number, random: Philox4x32): number {
    const { starts, candidates, weights } = this.table;
    const [start, end] = [starts[concept], starts[concept + 1]];
    let total = 0;
    for (let i = start; i < end; i++) total += weights[i];
    let left = random.uniform(0, total);
    let chosen = start;
    while (chosen < end - 1 && left >= weights[chosen]) {
      left -= weights[chosen++];
    }
    return candidates[chosen];
  }
}
