// The checkpoints that Google published: SigLIP, ten of them, and SigLIP 2, seventeen. Everything else
// about them (config.json, names and shapes of tensors, sizes of files) follows from this table.
// Source: the repositories' cards on the Hugging Face hub and big_vision's README_siglip2.md.
import type { ModelConfig } from './config';
import type { VariantName, VariantOptions } from './variants';
import { variant } from './variants';

/** A published checkpoint. */
export interface Release {
  /** Its name on the Hugging Face hub. */
  readonly repository: string;
  /** 1: lower case English or multilingual unigram vocabularies, bicubic resize. 2: Gemma, bilinear. */
  readonly generation: 1 | 2;
  readonly variant: VariantName;
  readonly options: VariantOptions;
}

/** Token ids of SigLIP 1: of the English vocabulary, and of the multilingual one. */
const ENGLISH = 32000;
const MULTILINGUAL = 250000;

function first(
  name: string,
  size: VariantName,
  imageSize: number,
  options: VariantOptions = {},
): Release {
  return {
    repository: `google/siglip-${name}`,
    generation: 1,
    variant: size,
    options: { imageSize, vocabulary: ENGLISH, ...options },
  };
}

function second(word: string, size: VariantName, imageSizes: readonly number[]): Release[] {
  const [, patch = ''] = size.split('/');
  return imageSizes.map((imageSize) => ({
    repository: `google/siglip2-${word}-patch${patch}-${String(imageSize)}`,
    generation: 2,
    variant: size,
    options: { imageSize },
  }));
}

function naflex(word: string, size: VariantName): Release {
  return {
    repository: `google/siglip2-${word}-patch16-naflex`,
    generation: 2,
    variant: size,
    options: { layout: 'naflex' },
  };
}

/** All of them. */
export const releases: readonly Release[] = [
  first('base-patch16-224', 'B/16', 224),
  first('base-patch16-256', 'B/16', 256),
  first('base-patch16-384', 'B/16', 384),
  first('base-patch16-512', 'B/16', 512),
  first('base-patch16-256-multilingual', 'B/16', 256, { vocabulary: MULTILINGUAL }),
  first('large-patch16-256', 'L/16', 256),
  first('large-patch16-384', 'L/16', 384),
  first('so400m-patch14-224', 'So400m/14', 224, { length: 16 }),
  first('so400m-patch14-384', 'So400m/14', 384),
  first('so400m-patch16-256-i18n', 'So400m/16', 256, { vocabulary: MULTILINGUAL }),
  ...second('base', 'B/32', [256]),
  ...second('base', 'B/16', [224, 256, 384, 512]),
  ...second('large', 'L/16', [256, 384, 512]),
  ...second('so400m', 'So400m/14', [224, 384]),
  ...second('so400m', 'So400m/16', [256, 384, 512]),
  ...second('giant-opt', 'g-opt/16', [256, 384]),
  naflex('base', 'B/16'),
  naflex('so400m', 'So400m/16'),
];

/** The config of a published checkpoint. */
export function releaseConfig({ variant: name, options }: Release): ModelConfig {
  return variant(name, options);
}
