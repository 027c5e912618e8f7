import { gridSide, parameterCount, parameterTable, releaseConfig, releases } from '../../lib/model';
import type { Release } from '../../lib/model';
import { huggingFaceTensors, parseConfig } from '../../lib/weights';
import { formatHeader } from '../../lib/weights/safetensors';
import { publishedConfig, pythonJson, SHARD_BYTES } from '../checkpoints/layout';

function release(repository: string): Release {
  const found = releases.find((one) => one.repository === repository);
  if (found === undefined) throw new Error(`${repository} must be released`);
  return found;
}

// repository, tensors, parameters, of the vision tower with its head, of the text tower with its
// head, bytes of the header, bytes of model.safetensors.
const PUBLISHED: readonly [string, number, number, number, number, number, number][] = [
  ['siglip-base-patch16-224', 408, 203155970, 92884224, 110271744, 48432, 812672320],
  ['siglip-base-patch16-256', 408, 203202050, 92930304, 110271744, 48432, 812856640],
  ['siglip-base-patch16-384', 408, 203447810, 93176064, 110271744, 48432, 813839680],
  ['siglip-base-patch16-512', 408, 203791874, 93520128, 110271744, 48440, 815215944],
  ['siglip-base-patch16-256-multilingual', 408, 370626050, 92930304, 277695744, 48992, 1482553200],
  ['siglip-large-patch16-256', 792, 652150786, 315956224, 336194560, 96648, 2608699800],
  ['siglip-large-patch16-384', 792, 652478466, 316283904, 336194560, 96648, 2610010520],
  ['siglip-so400m-patch14-224', 888, 877360306, 427680704, 449679600, 108624, 3509549856],
  ['siglip-so400m-patch14-384', 888, 877960498, 428225600, 449734896, 108624, 3511950624],
  ['siglip-so400m-patch16-256-i18n', 888, 1128758962, 427888064, 700870896, 109072, 4515144928],
  ['siglip2-base-patch32-256', 408, 376856066, 94552320, 282303744, 49016, 1507473288],
  ['siglip2-base-patch16-224', 408, 375187970, 92884224, 282303744, 49016, 1500800904],
  ['siglip2-base-patch16-256', 408, 375234050, 92930304, 282303744, 49016, 1500985224],
  ['siglip2-base-patch16-384', 408, 375479810, 93176064, 282303744, 49016, 1501968264],
  ['siglip2-base-patch16-512', 408, 375823874, 93520128, 282303744, 49016, 1503344520],
  ['siglip2-large-patch16-256', 792, 881526786, 315956224, 565570560, 97208, 3526204360],
  ['siglip2-large-patch16-384', 792, 881854466, 316283904, 565570560, 97208, 3527515080],
  ['siglip2-large-patch16-512', 792, 882313218, 316742656, 565570560, 97208, 3529350088],
  ['siglip2-so400m-patch14-224', 888, 1135463602, 427680704, 707782896, 109072, 4541963488],
  ['siglip2-so400m-patch14-384', 888, 1136008498, 428225600, 707782896, 109072, 4544143072],
  ['siglip2-so400m-patch16-256', 888, 1135670962, 427888064, 707782896, 109072, 4542792928],
  ['siglip2-so400m-patch16-384', 888, 1136039602, 428256704, 707782896, 109072, 4544267488],
  ['siglip2-so400m-patch16-512', 888, 1136555698, 428772800, 707782896, 109080, 4546331880],
  ['siglip2-base-patch16-naflex', 408, 375234050, 92930304, 282303744, 49016, 1500985224],
  ['siglip2-so400m-patch16-naflex', 888, 1135670962, 427888064, 707782896, 109072, 4542792928],
];

// The same without the header: these two are split, 2 × 4 bytes of logits included.
const SPLIT: readonly [string, number, number, number, number, number][] = [
  ['siglip2-giant-opt-patch16-256', 1096, 1871393906, 1163168256, 708225648, 7485575624],
  ['siglip2-giant-opt-patch16-384', 1096, 1871885426, 1163659776, 708225648, 7487541704],
];

function countsOf(repository: string): number[] {
  const config = releaseConfig(release(repository));
  const table = parameterTable(config);
  const of = (tower: string): number =>
    parameterCount(table.filter(({ path }) => path.startsWith(tower)));
  return [huggingFaceTensors(config).length, parameterCount(table), of('vision.'), of('text.')];
}

function headerOf(repository: string): Buffer {
  const tensors = huggingFaceTensors(releaseConfig(release(repository)))
    .map(({ name, shape }) => [name, { dtype: 'F32', shape }] as const)
    .sort(([a], [b]) => (a < b ? -1 : 1));
  return formatHeader(repository, tensors, { format: 'pt' });
}

test('the table is complete', () => {
  const names = [...PUBLISHED, ...SPLIT].map(([name]) => `google/${name}`);
  expect(releases.map(({ repository }) => repository).sort()).toEqual(names.sort());
  expect(names).toHaveLength(27);
});

test.each(PUBLISHED)(
  '%s: %d tensors, %d parameters',
  (name, tensors, parameters, vision, text, header, bytes) => {
    const repository = `google/${name}`;
    expect(countsOf(repository)).toEqual([tensors, parameters, vision, text]);
    const start = headerOf(repository);
    expect(Number(start.readBigUInt64LE(0))).toBe(header);
    expect(start.length + 4 * parameters).toBe(bytes);
    expect(4 * parameters).toBeLessThan(SHARD_BYTES);
  },
);

test.each(SPLIT)(
  '%s: %d tensors, %d parameters, in two files',
  (name, tensors, parameters, vision, text, bytes) => {
    expect(countsOf(`google/${name}`)).toEqual([tensors, parameters, vision, text]);
    expect(4 * parameters).toBe(bytes);
    expect(bytes).toBeGreaterThan(SHARD_BYTES);
    expect(bytes).toBeLessThan(2 * SHARD_BYTES);
  },
);

test.each(releases)('$repository: its name says what it is', ({ repository, ...rest }) => {
  const { vision, text } = releaseConfig({ repository, ...rest });
  const size = vision.layout === 'naflex' ? 'naflex' : String(vision.imageSize);
  expect(repository).toMatch(
    new RegExp(`^google/siglip2?-[a-z0-9-]+-patch${String(vision.patch)}-${size}`, 'u'),
  );
  expect(gridSide(vision) ** 2).toBe(vision.positions);
  expect(text.vocabulary).toBe(
    repository.includes('siglip2') ? 256000 : /i18n|multi/u.test(repository) ? 250000 : 32000,
  );
  expect(text.length).toBe(repository === 'google/siglip-so400m-patch14-224' ? 16 : 64);
});

test.each(releases)('$repository: its sparse config.json gives it back', (one) => {
  const config = releaseConfig(one);
  expect(parseConfig(publishedConfig(config, one))).toEqual(config);
});

// Byte counts of the published files.
describe('config.json as it is published', () => {
  const text = (repository: string): string => {
    const one = release(repository);
    return pythonJson(publishedConfig(releaseConfig(one), one));
  };

  test.each([
    ['google/siglip-so400m-patch14-384', 576],
    ['google/siglip2-base-patch16-224', 253],
    ['google/siglip2-base-patch16-naflex', 329],
  ])('%s has %d bytes', (repository, bytes) => {
    expect(text(repository)).toHaveLength(bytes);
  });

  test('google/siglip2-base-patch16-224', () => {
    expect(text('google/siglip2-base-patch16-224')).toBe(`{
  "initializer_factor": 1.0,
  "model_type": "siglip",
  "text_config": {
    "model_type": "siglip_text_model",
    "vocab_size": 256000
  },
  "transformers_version": "4.49.0.dev0",
  "vision_config": {
    "model_type": "siglip_vision_model"
  }
}
`);
  });
});
