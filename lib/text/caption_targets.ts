// What a captioning decoder is to predict (LocCa, arXiv 2403.19596; SigLIP 2 §2.2), and what goes in:
//
//   Cap: <caption>      ARef: <caption> : <box>      GCap: <box> : <caption>
//
// The prefix is a forced prompt and carries no loss; box, caption and the end of the sequence carry it
// (the papers do not say). The pieces of a sequence are tokenized one by one, so that a prompt has the
// same ids as the beginning of a target. As for the text tower a sequence of full length ends in <eos>.
import { Philox4x32 } from '../array/random';
import { SiglipError } from '../errors';
import type { CaptionFormat, CaptionTask } from '../model';
import { captionTasks, captionVocabulary, defaultCaptionFormat } from '../model';
import type { Box } from './box_tokens';
import { boxIds, expectBox } from './box_tokens';
import type { Tokenizer } from './tokenizer';

/** A captioned image, with one of its regions where it has any. */
export interface CaptionExample {
  readonly caption: string;
  readonly region?: { readonly box: Box; readonly caption: string } | undefined;
}

export interface CaptionTargetOptions {
  /** Ids per sequence T, default 64. */
  readonly length?: number;
  /** Default {@link defaultCaptionFormat}. */
  readonly format?: CaptionFormat;
  /**
   * With what probability an image's caption is predicted in parallel: from mask tokens alone, without
   * a causal mask. Default 0.5 (SigLIP 2 §2.2). The other two targets are always autoregressive.
   */
  readonly parallel?: number;
}

/** Which random numbers are drawn: a run's seed, and how many examples it has drawn for before. */
export interface CaptionDraw {
  readonly seed: number;
  readonly position: number;
}

/** A batch for `decoder` and `captionLoss`: S sequences of T ids. */
export interface CaptionBatch {
  /** (S, T), what goes in. */
  readonly ids: Int32Array;
  /** (S, T), what is to be predicted. */
  readonly labels: Int32Array;
  /** (S, T): 1 where it counts, 0 for padding and prefixes. */
  readonly weights: Float32Array;
  /** (S): 0 where a sequence is predicted in parallel. */
  readonly causal: Uint8Array;
}

/** Goes in before the first token of a sequence (CapPa). */
const BEGIN = 0;

/** The ids with which the sequence of a task begins. */
export function captionPrompt(
  tokenizer: Tokenizer,
  task: CaptionTask,
  { prefixes }: CaptionFormat = defaultCaptionFormat,
): Int32Array {
  return tokenizer.ids(prefixes[task]);
}

/** The ids behind which the box of a text is written. */
export function groundingPrompt(
  tokenizer: Tokenizer,
  text: string,
  format: CaptionFormat = defaultCaptionFormat,
): Int32Array {
  return join(captionPrompt(tokenizer, 'aref', format), tokenizer.ids(` ${text} :`));
}

function join(...parts: readonly Int32Array[]): Int32Array {
  return Int32Array.from(parts.flatMap((part) => [...part]));
}

/** A sequence without its end, and how many ids at its head carry no loss. */
interface Target {
  readonly ids: Int32Array;
  readonly prompt: number;
}

function targetOf(
  tokenizer: Tokenizer,
  task: CaptionTask,
  { caption, region }: CaptionExample,
  format: CaptionFormat,
): Target | undefined {
  const prefix = captionPrompt(tokenizer, task, format);
  const prompt = prefix.length;
  if (task === 'cap') return { ids: join(prefix, tokenizer.ids(` ${caption}`)), prompt };
  if (region === undefined) return undefined;
  const box = boxIds(tokenizer, expectBox('captionTargets', region.box), format);
  const ids =
    task === 'aref'
      ? join(groundingPrompt(tokenizer, region.caption, format), box)
      : join(prefix, box, tokenizer.ids(' :'), tokenizer.ids(` ${region.caption}`));
  return { ids, prompt };
}

/**
 * The three targets of every image, 3 B sequences image by image in the order of `captionTasks`. Those
 * of a region are without weight where the image has none.
 *
 * @throws SiglipError ERR_ARGUMENT for a box that is none, a probability outside of 0 to 1, or a length
 * below 1
 * @example
 * const batch = captionTargets(tokenizer, [{ caption: 'a cat on a mat' }], { seed: 1, position: 0 });
 */
export function captionTargets(
  tokenizer: Tokenizer,
  examples: readonly CaptionExample[],
  draw: CaptionDraw,
  options: CaptionTargetOptions = {},
): CaptionBatch {
  const { length = 64, format = defaultCaptionFormat, parallel = 0.5 } = options;
  if (!(parallel >= 0 && parallel <= 1)) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `captionTargets: parallel must be in 0 to 1, got ${String(parallel)}`,
    );
  }
  const random = new Philox4x32(draw.seed, 'caption/parallel');
  random.position = draw.position;
  const inParallel = examples.map(() => random.uniform() < parallel);
  const rows = examples.flatMap((example, i) =>
    captionTasks.map((task) => ({
      target: targetOf(tokenizer, task, example, format),
      causal: !(task === 'cap' && inParallel[i]),
    })),
  );
  return toBatch(tokenizer, rows, length, format);
}

/**
 * Captions to be scored, autoregressively: their log-likelihood is that of the ids with weight.
 *
 * @throws SiglipError ERR_ARGUMENT for a length below 1
 */
export function captionQueries(
  tokenizer: Tokenizer,
  captions: readonly string[],
  { length = 64, format = defaultCaptionFormat }: Omit<CaptionTargetOptions, 'parallel'> = {},
): CaptionBatch {
  const rows = captions.map((caption) => ({
    target: targetOf(tokenizer, 'cap', { caption }, format),
    causal: true,
  }));
  return toBatch(tokenizer, rows, length, format);
}

function toBatch(
  tokenizer: Tokenizer,
  rows: readonly { readonly target: Target | undefined; readonly causal: boolean }[],
  length: number,
  format: CaptionFormat,
): CaptionBatch {
  if (!Number.isSafeInteger(length) || length < 1) {
    throw new SiglipError(
      'ERR_ARGUMENT',
      `captionTargets: length must be a positive integer, got ${String(length)}`,
    );
  }
  const { padId, eosId } = tokenizer;
  const labels = new Int32Array(rows.length * length).fill(padId);
  const ids = new Int32Array(labels.length);
  const weights = new Float32Array(labels.length);
  const mask = captionVocabulary(tokenizer.vocabulary, format);
  rows.forEach(({ target, causal }, row) => {
    const at = row * length;
    if (target !== undefined) {
      const kept = target.ids.subarray(0, length - 1);
      labels.set(kept, at);
      labels[at + kept.length] = eosId;
      weights.fill(1, at + Math.min(target.prompt, kept.length), at + kept.length + 1);
    }
    if (causal) {
      ids[at] = BEGIN;
      ids.set(labels.subarray(at, at + length - 1), at + 1);
    } else {
      ids.fill(mask, at, at + length);
    }
  });
  return { ids, labels, weights, causal: Uint8Array.from(rows, ({ causal }) => (causal ? 1 : 0)) };
}
