// What a batch has besides images and texts, where a stage of training asks for it: targets of the
// captioning decoder, and views for self-distillation. All of it follows from the examples, a seed and
// their numbers in the stream.
import { Philox4x32 } from '../array/random';
import { SiglipError } from '../errors';
import type { RawImage } from '../image';
import { renderViews } from '../image';
import type { CaptionBatch, CaptionExample, Tokenizer } from '../text';
import { captionTargets } from '../text';
import { maskBatch } from './patch_mask';
import { drawView } from './views';

/** What a stage asks for. */
export interface BatchParts {
  readonly targets?: {
    /** Ids of a sequence. */
    readonly length: number;
    /** Share of the captions that are predicted in parallel. */
    readonly parallel: number;
  };
  readonly views?: {
    /** Pixels a side, of the global view and of the local ones. */
    readonly size: number;
    readonly localSize: number;
    /** Local views of an image. */
    readonly localViews: number;
    /** Patches a side of the global view. */
    readonly grid: number;
    readonly mask: 'random' | 'block';
    readonly maskShare: number;
  };
}

/** Augmented views of the images of a batch. */
export interface BatchViews {
  /** (B, S, S, 3) */
  readonly global: Uint8Array;
  /** (V, s, s, 3) */
  readonly local: Uint8Array;
  /** (V): the image of each local view. */
  readonly images: Int32Array;
  /** (B, N): 1 where a patch of the global view is masked. */
  readonly mask: Uint8Array;
  /** (M): rows b·N + n of the masked patches. */
  readonly rows: Int32Array;
  /** (M): what each counts; 0 for a row that fills up. */
  readonly weights: Float32Array;
}

/** What the parts of an example are made of. */
export interface PartsExample extends CaptionExample {
  /** What views are cut from. */
  readonly image: RawImage;
}

/** Which random numbers are drawn. */
export interface PartsDraw {
  readonly seed: number;
  /** Number of the first example in its stream. */
  readonly first: number;
}

/** The parts of a batch. */
export interface ComposedParts {
  readonly targets?: CaptionBatch;
  readonly views?: BatchViews;
}

/**
 * Makes the parts of a batch.
 *
 * @param tokenizer - for targets
 * @throws ERR_ARGUMENT without a tokenizer where targets are asked for; what the parts themselves throw
 */
export async function composeParts(
  parts: BatchParts,
  examples: readonly PartsExample[],
  draw: PartsDraw,
  tokenizer?: Tokenizer,
): Promise<ComposedParts> {
  const { targets, views } = parts;
  return {
    ...(targets === undefined
      ? {}
      : {
          targets: captionTargets(
            expectTokenizer(tokenizer),
            examples,
            { seed: draw.seed, position: draw.first },
            targets,
          ),
        }),
    ...(views === undefined ? {} : { views: await composeViews(views, examples, draw) }),
  };
}

async function composeViews(
  { size, localSize, localViews, grid, mask, maskShare }: NonNullable<BatchParts['views']>,
  examples: readonly PartsExample[],
  { seed, first }: PartsDraw,
): Promise<BatchViews> {
  const randoms = examples.map((_, i) => new Philox4x32(seed, `views ${String(first + i)}`));
  const drawn = examples.map(({ image }, i) => ({
    image,
    global: drawView(randoms[i], 'global', image),
    local: Array.from({ length: localViews }, () => drawView(randoms[i], 'local', image)),
  }));
  const [global, local] = await Promise.all([
    renderViews(
      drawn.map(({ image, global: view }) => ({ image, views: [view] })),
      size,
    ),
    renderViews(
      drawn.map(({ image, local: views }) => ({ image, views })),
      localSize,
    ),
  ]);
  const images = Int32Array.from({ length: examples.length * localViews }, (_, i) =>
    Math.floor(i / localViews),
  );
  const masked = maskBatch(
    examples.map((_, i) => new Philox4x32(seed, `mask ${String(first + i)}`)),
    { rows: grid, columns: grid },
    { kind: mask, ratio: maskShare },
  );
  return { global, local, images, ...masked };
}

function expectTokenizer(tokenizer: Tokenizer | undefined): Tokenizer {
  if (tokenizer !== undefined) return tokenizer;
  throw new SiglipError(
    'ERR_ARGUMENT',
    'composeParts: tokenizer must be given where targets are asked for, got none',
  );
}
