// preprocessor_config.json: how pixels are prepared. Followed to the letter and never guessed from a
// model's name: SigLIP files say bicubic, SigLIP 2 files bilinear.
import { z } from 'zod';
import { SiglipError } from '../errors';
import type { ModelConfig } from '../model/config';
import { checked } from './json_file';

/** Pillow's resampling filters. Published files name bilinear and bicubic. */
export type Resample = 'nearest' | 'lanczos' | 'bilinear' | 'bicubic' | 'box' | 'hamming';

/**
 * Whose arithmetic prepares pixels: they differ by a level or two on less than one pixel in a hundred
 * and, in the last bit of the floats, on half of the codes.
 *
 * - `pillow`: what Python computes with the processors named without `Fast`, and what the published
 *   reference values were made with.
 * - `torchvision`: what it computes with those named `…Fast`, on a CPU with AVX2 or on ARM.
 */
export type ImageBackend = 'pillow' | 'torchvision';

/** How a byte becomes a float: `(byte · rescaleFactor − mean) / std`, per colour. */
export interface Normalization {
  /** 1 where the file turns rescaling off. */
  readonly rescaleFactor: number;
  /** 0 where the file turns normalisation off. */
  readonly mean: readonly [number, number, number];
  /** 1 where the file turns normalisation off. */
  readonly std: readonly [number, number, number];
}

interface Preparation extends Normalization {
  /** `torchvision` where `image_processor_type` ends in `Fast`, else `pillow`. */
  readonly backend: ImageBackend;
}

/** Every image is squeezed to one size. */
export interface FixedPreprocessor extends Preparation {
  readonly layout: 'fixed';
  /** Pixels. */
  readonly height: number;
  readonly width: number;
  /** `null`: images are taken as they are and must have the size already. */
  readonly resample: Resample | null;
}

/** Every image is resized to whole patches within a budget. */
export interface NaflexPreprocessor extends Preparation {
  readonly layout: 'naflex';
  /** Side of a patch in pixels. */
  readonly patch: number;
  /** Most patches of one image. */
  readonly maxPatches: number;
  readonly resample: Resample;
}

export type Preprocessor = FixedPreprocessor | NaflexPreprocessor;

/** The number of each filter in Pillow and in the file. */
export const RESAMPLE_CODES: Readonly<Record<Resample, number>> = {
  nearest: 0,
  lanczos: 1,
  bilinear: 2,
  bicubic: 3,
  box: 4,
  hamming: 5,
};
const RESCALE_FACTOR = 1 / 255;
// How the names of torchvision's processors end.
const FAST = 'Fast';

const count = z.int('a positive integer').min(1, 'a positive integer');
const flag = z.boolean('true or false').nullish();
const triple = z.array(z.number('three numbers'), 'three numbers').length(3, 'three numbers');

const common = {
  do_resize: flag,
  do_rescale: flag,
  do_normalize: flag,
  resample: z
    .int('a filter of Pillow, 0 to 5')
    .min(0, 'a filter of Pillow, 0 to 5')
    .max(5, 'a filter of Pillow, 0 to 5')
    .nullish(),
  image_processor_type: z.string('a string').nullish(),
  rescale_factor: z.number('a number').nullish(),
  image_mean: triple.nullish(),
  image_std: triple
    .refine((std) => std.every((value) => value > 0), 'three positive numbers')
    .nullish(),
};

const fixedFile = z.looseObject(
  {
    ...common,
    size: z
      .union(
        [z.looseObject({ height: count, width: count }), count],
        '{ height, width } or one number',
      )
      .nullish(),
  },
  'an object',
);

const naflexFile = z.looseObject(
  {
    ...common,
    patch_size: count.nullish(),
    max_num_patches: count.nullish(),
  },
  'an object',
);

/**
 * Reads the content of a `preprocessor_config.json`.
 *
 * @param layout - that of the model: which of the two processors is meant does not follow from the
 *   file alone
 * @throws SiglipError ERR_CONFIG naming the key
 */
export function parsePreprocessor(
  content: unknown,
  layout: 'fixed' | 'naflex',
  file = 'preprocessor_config.json',
): Preprocessor {
  return layout === 'fixed' ? parseFixed(content, file) : parseNaflex(content, file);
}

function parseFixed(content: unknown, file: string): FixedPreprocessor {
  const json = checked(fixedFile, content, file, 'ERR_CONFIG');
  const size = json.size ?? 224;
  const { height, width } = typeof size === 'number' ? { height: size, width: size } : size;
  const backend = backendOf(json);
  const resample = json.do_resize === false ? null : filterOf(json.resample ?? 3, backend, file);
  return { layout: 'fixed', height, width, resample, backend, ...normalizationOf(json) };
}

function parseNaflex(content: unknown, file: string): NaflexPreprocessor {
  const json = checked(naflexFile, content, file, 'ERR_CONFIG');
  if (json.do_resize === false) {
    throw new SiglipError(
      'ERR_CONFIG',
      `${file}: do_resize must be true for a NaFlex model, got false`,
    );
  }
  const backend = backendOf(json);
  return {
    layout: 'naflex',
    patch: json.patch_size ?? 16,
    maxPatches: json.max_num_patches ?? 256,
    resample: filterOf(json.resample ?? 2, backend, file),
    backend,
    ...normalizationOf(json),
  };
}

function backendOf(json: z.output<z.ZodObject<typeof common>>): ImageBackend {
  return json.image_processor_type?.endsWith(FAST) === true ? 'torchvision' : 'pillow';
}

function filterOf(code: number, backend: ImageBackend, file: string): Resample {
  const filters = Object.keys(RESAMPLE_CODES) as Resample[];
  const filter = filters.find((name) => RESAMPLE_CODES[name] === code) ?? 'bilinear';
  if (backend === 'pillow' || filter === 'bilinear' || filter === 'bicubic') return filter;
  throw new SiglipError(
    'ERR_CONFIG',
    `${file}: resample must be 2 (bilinear) or 3 (bicubic) for a processor named ${FAST}, got ` +
      String(code),
  );
}

function normalizationOf(json: z.output<z.ZodObject<typeof common>>): Normalization {
  const normalize = json.do_normalize !== false;
  return {
    rescaleFactor: json.do_rescale === false ? 1 : (json.rescale_factor ?? RESCALE_FACTOR),
    mean: normalize ? tripleOf(json.image_mean ?? [0.5, 0.5, 0.5]) : [0, 0, 0],
    std: normalize ? tripleOf(json.image_std ?? [0.5, 0.5, 0.5]) : [1, 1, 1],
  };
}

function tripleOf([red, green, blue]: readonly number[]): [number, number, number] {
  return [red, green, blue];
}

/** What SigLIP 2 was trained with: bilinear, bytes to [−1, 1]. */
export function defaultPreprocessor({ vision }: ModelConfig): Preprocessor {
  const shared = {
    resample: 'bilinear',
    backend: 'pillow',
    rescaleFactor: RESCALE_FACTOR,
    mean: [0.5, 0.5, 0.5],
    std: [0.5, 0.5, 0.5],
  } as const;
  if (vision.layout === 'fixed') {
    return { layout: 'fixed', height: vision.imageSize, width: vision.imageSize, ...shared };
  }
  return { layout: 'naflex', patch: vision.patch, maxPatches: 256, ...shared };
}

/**
 * The same preparation for a model of another size, patch or layout. A budget of patches that only
 * the new one has is 256; a model that took images as they are then resizes them, bilinear.
 */
export function adaptedPreprocessor(preprocessor: Preprocessor, config: ModelConfig): Preprocessor {
  const { backend, rescaleFactor, mean, std } = preprocessor;
  const shared = { backend, rescaleFactor, mean, std };
  const adapted = { ...defaultPreprocessor(config), ...shared };
  if (adapted.layout === 'fixed') return { ...adapted, resample: preprocessor.resample };
  const resample = preprocessor.resample ?? adapted.resample;
  const maxPatches =
    preprocessor.layout === 'naflex' ? preprocessor.maxPatches : adapted.maxPatches;
  return { ...adapted, resample, maxPatches };
}

/** The content of a `preprocessor_config.json`, keys as the reference writes them. */
export function formatPreprocessor(preprocessor: Preprocessor): Record<string, unknown> {
  const { rescaleFactor, mean, std, resample } = preprocessor;
  const shared = {
    do_convert_rgb: null,
    do_normalize: true,
    do_rescale: true,
    do_resize: resample !== null,
    image_mean: mean,
    image_std: std,
    resample: RESAMPLE_CODES[resample ?? 'bilinear'],
    rescale_factor: rescaleFactor,
  };
  const suffix = preprocessor.backend === 'torchvision' ? FAST : '';
  if (preprocessor.layout === 'fixed') {
    const { height, width } = preprocessor;
    return {
      ...shared,
      image_processor_type: `SiglipImageProcessor${suffix}`,
      processor_class: 'SiglipProcessor',
      size: { height, width },
    };
  }
  return {
    ...shared,
    image_processor_type: `Siglip2ImageProcessor${suffix}`,
    max_num_patches: preprocessor.maxPatches,
    patch_size: preprocessor.patch,
    processor_class: 'Siglip2Processor',
  };
}
