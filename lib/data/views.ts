// Random views of a training image for self-distillation, with DINO's distributions (main_dino.py,
// DataAugmentationDINO), which SILC (arXiv 2310.13355) takes over.
import type { Philox4x32 } from '../array/random';
import { SiglipError } from '../errors';
import type { ColourChange, Crop, ImageView } from '../image';

type Range = readonly [low: number, high: number];

/** How views are drawn. */
export interface ViewOptions {
  /** Area of the crop as a share of the image's. */
  readonly scale: Range;
  /** Width over height of the crop, drawn evenly on a logarithmic scale. */
  readonly aspect: Range;
  /** Probability of a mirror image. */
  readonly flip: number;
  /** Changes of colour: factors from [1 − s, 1 + s], hue from [−s, s] of a turn, in random order. */
  readonly jitter: {
    readonly probability: number;
    readonly brightness: number;
    readonly contrast: number;
    readonly saturation: number;
    readonly hue: number;
  };
  /** Probability of a grey image. */
  readonly grey: number;
  readonly blur: {
    readonly probability: number;
    /** Standard deviation in pixels of the view. */
    readonly sigma: Range;
  };
}

export type ViewKind = 'global' | 'local';

const local: ViewOptions = {
  scale: [0.05, 0.4],
  aspect: [3 / 4, 4 / 3],
  flip: 0.5,
  jitter: { probability: 0.8, brightness: 0.4, contrast: 0.4, saturation: 0.2, hue: 0.1 },
  grey: 0.2,
  blur: { probability: 0.5, sigma: [0.1, 2] },
};

/** DINO's options: of its first global view, the one that SigLIP 2 has, and of its local views. */
export const viewDefaults: Readonly<Record<ViewKind, ViewOptions>> = {
  local,
  global: { ...local, scale: [0.4, 1], blur: { ...local.blur, probability: 1 } },
};

const CROP_TRIES = 10;
// Four words for every try of a crop, and those of the rest, rounded up.
const WORDS = 4 * CROP_TRIES + 16;

/**
 * Draws a view of an image of some size: always 56 words of the stream, and every part from words of
 * its own, so that another probability of one part leaves the others as they were.
 *
 * @param options - what differs from {@link viewDefaults} of the kind
 * @throws ERR_ARGUMENT for a size or an option out of its range
 */
export function drawView(
  random: Philox4x32,
  kind: ViewKind,
  { width, height }: { readonly width: number; readonly height: number },
  options: Partial<ViewOptions> = {},
): ImageView {
  const all = { ...viewDefaults[kind], ...options };
  check(width, height, all);
  const begin = random.position;
  const crop = drawCrop(random, width, height, all);
  random.position = begin + 4 * CROP_TRIES;
  const happens = (probability: number): boolean => random.uniform() < probability;
  const flip = happens(all.flip);
  const jittered = happens(all.jitter.probability);
  const { brightness, contrast, saturation, hue } = all.jitter;
  const jitter = {
    brightness: random.uniform(1 - brightness, 1 + brightness),
    contrast: random.uniform(1 - contrast, 1 + contrast),
    saturation: random.uniform(1 - saturation, 1 + saturation),
    hue: random.uniform(-hue, hue),
    order: shuffled(random),
  };
  const grey = happens(all.grey);
  const blurred = happens(all.blur.probability);
  const sigma = random.uniform(...all.blur.sigma);
  random.position = begin + WORDS;
  return { crop, flip, jitter: jittered ? jitter : undefined, grey, blur: blurred ? sigma : 0 };
}

/** An integer in [0, n) from one word. */
function below(random: Philox4x32, n: number): number {
  return Math.floor(random.uniform() * n);
}

// As torchvision's RandomResizedCrop: some tries, then the largest middle part of an allowed aspect.
function drawCrop(
  random: Philox4x32,
  width: number,
  height: number,
  { scale, aspect }: ViewOptions,
): Crop {
  for (let i = 0; i < CROP_TRIES; i++) {
    const area = width * height * random.uniform(...scale);
    const ratio = Math.exp(random.uniform(Math.log(aspect[0]), Math.log(aspect[1])));
    const across = Math.round(Math.sqrt(area * ratio));
    const down = Math.round(Math.sqrt(area / ratio));
    const fits = across >= 1 && across <= width && down >= 1 && down <= height;
    const left = below(random, width - across + 1);
    const top = below(random, height - down + 1);
    if (fits) return { left, top, width: across, height: down };
  }
  const ratio = Math.min(Math.max(width / height, aspect[0]), aspect[1]);
  const across = Math.max(1, Math.min(width, Math.round(height * ratio)));
  const down = Math.max(1, Math.min(height, Math.round(width / ratio)));
  return {
    left: Math.floor((width - across) / 2),
    top: Math.floor((height - down) / 2),
    width: across,
    height: down,
  };
}

function shuffled(random: Philox4x32): ColourChange[] {
  const order: ColourChange[] = ['brightness', 'contrast', 'saturation', 'hue'];
  for (let i = order.length - 1; i > 0; i--) {
    const j = below(random, i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

function check(width: number, height: number, options: ViewOptions): void {
  const { scale, aspect, flip, jitter, grey, blur } = options;
  const demands: readonly (readonly [string, boolean, unknown])[] = [
    ['width a positive integer', Number.isSafeInteger(width) && width >= 1, width],
    ['height a positive integer', Number.isSafeInteger(height) && height >= 1, height],
    ['scale ordered in (0, 1]', ordered(scale) && scale[0] > 0 && scale[1] <= 1, scale],
    ['aspect ordered and positive', ordered(aspect) && aspect[0] > 0, aspect],
    ['flip in [0, 1]', share(flip), flip],
    ['jitter.probability in [0, 1]', share(jitter.probability), jitter.probability],
    ['jitter.brightness in [0, 1]', share(jitter.brightness), jitter.brightness],
    ['jitter.contrast in [0, 1]', share(jitter.contrast), jitter.contrast],
    ['jitter.saturation in [0, 1]', share(jitter.saturation), jitter.saturation],
    ['jitter.hue in [0, ½]', jitter.hue >= 0 && jitter.hue <= 0.5, jitter.hue],
    ['grey in [0, 1]', share(grey), grey],
    ['blur.probability in [0, 1]', share(blur.probability), blur.probability],
    ['blur.sigma ordered from 0', ordered(blur.sigma) && blur.sigma[0] >= 0, blur.sigma],
  ];
  for (const [demand, met, value] of demands) {
    if (met) continue;
    const [name, ...rest] = demand.split(' ');
    throw new SiglipError(
      'ERR_ARGUMENT',
      `drawView: ${name} must be ${rest.join(' ')}, got ${String(value)}`,
    );
  }
}

function share(value: number): boolean {
  return value >= 0 && value <= 1;
}

function ordered([low, high]: Range): boolean {
  return low <= high && Number.isFinite(low) && Number.isFinite(high);
}
