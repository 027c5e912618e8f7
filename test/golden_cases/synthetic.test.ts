// Models whose weights are a hash of their place, so that their embeddings are known without any
// file: written as a checkpoint folder, loaded and run through the public face. The expected values
// were made with transformers 5.18.0 in float64.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Siglip2 } from '../../lib/embed';
import type { DeviceArray } from '../../lib/array';
import { flatten } from '../../lib/graph';
import { loadCheckpoint } from '../../lib/weights';
import { ndArray } from '../reference/nd_array';
import { expectClose, within } from './close';
import { runTwoTowers } from './product';

const TOLERANCE = 5e-6;

/** The hash of element i of tensor t, in [−½, ½). */
function hash(i: number, t: number): number {
  let x = (Math.imul(i, 1664525) + Math.imul(t, 1013904223) + 12345) >>> 0;
  x ^= x >>> 16;
  x = Math.imul(x, 0x45d9f3b) >>> 0;
  x ^= x >>> 16;
  return (x >>> 0) / 4294967296 - 0.5;
}

interface TowerSizes {
  readonly width: number;
  readonly heads: number;
  readonly depth: number;
  readonly hidden: number;
}

interface Sizes {
  readonly vision: TowerSizes & { readonly patch: number; readonly positions: number };
  /** Absent in a NaFlex model. */
  readonly imageSize?: number;
  readonly text: TowerSizes;
  readonly embedding: number;
}

const VOCABULARY = 97;
const LENGTH = 16;
const BATCH = 2;

/** Shape of every tensor of the checkpoint. */
function shapesOf({ vision, imageSize, text, embedding }: Sizes): Map<string, readonly number[]> {
  const shapes = new Map<string, readonly number[]>();
  const linear = (name: string, inputs: number, outputs: number): void => {
    shapes.set(`${name}.weight`, [outputs, inputs]);
    shapes.set(`${name}.bias`, [outputs]);
  };
  const norm = (name: string, width: number): void => {
    shapes.set(`${name}.weight`, [width]);
    shapes.set(`${name}.bias`, [width]);
  };
  const layers = (tower: string, { width, depth, hidden }: TowerSizes): void => {
    for (let i = 0; i < depth; i++) {
      const layer = `${tower}.encoder.layers.${String(i)}`;
      norm(`${layer}.layer_norm1`, width);
      norm(`${layer}.layer_norm2`, width);
      for (const p of ['q', 'k', 'v', 'out']) linear(`${layer}.self_attn.${p}_proj`, width, width);
      linear(`${layer}.mlp.fc1`, width, hidden);
      linear(`${layer}.mlp.fc2`, hidden, width);
    }
  };
  const D = vision.width;
  const P = vision.patch;
  shapes.set('logit_scale', [1]);
  shapes.set('logit_bias', [1]);
  shapes.set('text_model.embeddings.token_embedding.weight', [VOCABULARY, text.width]);
  shapes.set('text_model.embeddings.position_embedding.weight', [LENGTH, text.width]);
  layers('text_model', text);
  norm('text_model.final_layer_norm', text.width);
  linear('text_model.head', text.width, embedding);
  const patch = 'vision_model.embeddings.patch_embedding';
  shapes.set(`${patch}.weight`, imageSize === undefined ? [D, P * P * 3] : [D, 3, P, P]);
  shapes.set(`${patch}.bias`, [D]);
  shapes.set('vision_model.embeddings.position_embedding.weight', [vision.positions, D]);
  layers('vision_model', vision);
  norm('vision_model.post_layernorm', D);
  shapes.set('vision_model.head.probe', [1, 1, D]);
  shapes.set('vision_model.head.attention.in_proj_weight', [3 * D, D]);
  shapes.set('vision_model.head.attention.in_proj_bias', [3 * D]);
  linear('vision_model.head.attention.out_proj', D, D);
  norm('vision_model.head.layernorm', D);
  linear('vision_model.head.mlp.fc1', D, vision.hidden);
  linear('vision_model.head.mlp.fc2', vision.hidden, D);
  return shapes;
}

const isNormWeight = (name: string): boolean => /norm\d?\.weight$/.test(name);

function valuesOf(name: string, shape: readonly number[], t: number): Float32Array {
  const count = shape.reduce((product, extent) => product * extent, 1);
  if (name === 'logit_scale') return Float32Array.of(Math.LN10);
  if (name === 'logit_bias') return Float32Array.of(-1.5);
  const [centre, spread] = isNormWeight(name) ? [1, 0.4] : [0, 0.5];
  return Float32Array.from({ length: count }, (_, i) => centre + spread * hash(i, t));
}

/** The bytes of a safetensors file of float32 tensors. */
function safetensors(
  tensors: ReadonlyMap<string, readonly [readonly number[], Float32Array]>,
): Buffer {
  const header: Record<string, unknown> = {};
  const data: Buffer[] = [];
  let offset = 0;
  for (const [name, [shape, values]] of tensors) {
    const bytes = Buffer.from(values.buffer, values.byteOffset, values.byteLength);
    header[name] = { dtype: 'F32', shape, data_offsets: [offset, offset + bytes.length] };
    offset += bytes.length;
    data.push(bytes);
  }
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  return Buffer.concat([length, json, ...data]);
}

function configOf({ vision, imageSize, text, embedding }: Sizes): unknown {
  const word = imageSize === undefined ? 'siglip2' : 'siglip';
  const tower = ({ width, heads, depth, hidden }: TowerSizes): Record<string, unknown> => ({
    hidden_size: width,
    num_attention_heads: heads,
    num_hidden_layers: depth,
    intermediate_size: hidden,
    hidden_act: 'gelu_pytorch_tanh',
    layer_norm_eps: 1e-6,
  });
  return {
    model_type: word,
    architectures: [imageSize === undefined ? 'Siglip2Model' : 'SiglipModel'],
    text_config: {
      ...tower(text),
      model_type: `${word}_text_model`,
      vocab_size: VOCABULARY,
      max_position_embeddings: LENGTH,
      projection_size: embedding,
    },
    vision_config: {
      ...tower(vision),
      model_type: `${word}_vision_model`,
      num_channels: 3,
      patch_size: vision.patch,
      ...(imageSize === undefined ? { num_patches: vision.positions } : { image_size: imageSize }),
    },
  };
}

interface Expected {
  readonly tensors: number;
  readonly pooled: readonly (readonly [readonly number[], number])[];
  readonly projected: readonly (readonly [readonly number[], number])[];
  readonly visionTokens?: readonly number[];
  readonly textTokens?: readonly number[];
  readonly logitsPerText: readonly number[];
  readonly loss: number;
}

interface Fixture {
  readonly name: string;
  readonly sizes: Sizes;
  /** Grids of a NaFlex batch, padded to `budget` rows. */
  readonly grids?: readonly (readonly [number, number])[];
  readonly budget?: number;
  readonly expected: Expected;
}

const SMALL: TowerSizes = { width: 32, heads: 4, depth: 2, hidden: 56 };
const SMALL_TEXT: Pick<Expected, 'projected'> = {
  projected: [
    [[-0.8856602, -0.70188198, 1.07898738, 0.66507509, -0.40932953, -0.89384572], 4.00064184],
    [[-1.56711185, -0.72769771, 0.85927317, -0.26956081, -0.56283414, -1.14177157], 4.5198891],
  ],
};

const FIXTURES: readonly Fixture[] = [
  {
    name: 'fixed',
    sizes: {
      vision: { ...SMALL, patch: 7, positions: 16 },
      imageSize: 30,
      text: SMALL,
      embedding: 32,
    },
    expected: {
      tensors: 88,
      pooled: [
        [[-1.059104, -0.27084962, 0.161832, 0.20946986, 0.49471042, 1.04771134], 3.63311317],
        [[-0.76532282, 0.05370626, 0.3195691, 0.20223997, 0.41887716, 0.95996033], 3.6781966],
      ],
      ...SMALL_TEXT,
      visionTokens: [0.99407661, -0.70333203, 2.43800613, -0.23902627],
      textTokens: [-0.07428869, 1.0370108, -0.49356206, -0.93992486],
      logitsPerText: [-1.61478266, -2.84603343, -1.5061357, -0.69739182],
      loss: 1.577203357,
    },
  },
  {
    name: 'NaFlex',
    sizes: { vision: { ...SMALL, patch: 4, positions: 16 }, text: SMALL, embedding: 32 },
    grids: [
      [3, 5],
      [5, 4],
    ],
    budget: 20,
    expected: {
      tensors: 88,
      pooled: [
        [[-1.08815426, -0.14409131, 0.1227625, -0.81496132, 0.79203575, 0.89207479], 4.32681222],
        [[-0.60863592, 0.23759443, 0.29995888, 0.53352456, 0.92274902, 1.42264143], 3.8461097],
      ],
      ...SMALL_TEXT,
      visionTokens: [-1.35559501, 0.75870223, 0.05895999, 0.70292919],
      logitsPerText: [-1.70129951, -0.72635713, -0.90658283, -1.24041687],
      loss: 2.048572881,
    },
  },
  {
    name: 'with towers of two widths',
    sizes: {
      vision: { width: 48, heads: 4, depth: 1, hidden: 64, patch: 4, positions: 16 },
      imageSize: 16,
      text: { width: 24, heads: 4, depth: 1, hidden: 40 },
      embedding: 48,
    },
    expected: {
      tensors: 56,
      pooled: [
        [[0.96052726, -0.15073603, -1.97017692, -1.58022493, -1.25980737, -1.78417625], 6.34407809],
        [[0.7164242, -0.60556912, -2.15962166, -0.72395263, -1.95511699, -1.97114158], 6.82745409],
      ],
      projected: [
        [[0.67381928, -1.3521122, -0.73770237, 0.68868045, 0.17267194, -0.45117769], 5.61549478],
        [[0.12683764, -0.20018892, -0.17649532, 0.25736588, 1.69864769, -0.29003254], 5.66321896],
      ],
      logitsPerText: [-1.07115808, 0.12273155, -3.45229737, -1.29865368],
      loss: 1.846650759,
    },
  },
];

function close(name: string, actual: ArrayLike<number>, expected: readonly number[]): void {
  expectClose(name, actual, ndArray([expected.length], expected), within(TOLERANCE));
}

test('the hash is the one the values were made with', () => {
  [0.026168975979, -0.473424067721, 0.413047844078, 0.361559430836].forEach((value, i) => {
    expect(hash(i, 0)).toBeCloseTo(value, 11);
  });
});

describe.each(FIXTURES)('synthetic model $name', ({ sizes, grids, budget, expected }) => {
  const folder = mkdtempSync(join(tmpdir(), 'siglip2-synthetic-'));
  const { patch } = sizes.vision;
  const side = sizes.imageSize ?? 0;
  const size = grids === undefined ? 3 * side * side : (budget ?? 0) * patch * patch * 3;
  const pixels = Array.from({ length: BATCH }, (_, image) => {
    const rows = grids === undefined ? Infinity : grids[image][0] * grids[image][1];
    return Float32Array.from({ length: size }, (_unused, i) =>
      grids !== undefined && i >= rows * patch * patch * 3 ? 0 : 2 * hash(image * size + i, 1000),
    );
  });
  const ids = Array.from({ length: BATCH }, (_, row) =>
    Int32Array.from({ length: LENGTH }, (_unused, i) =>
      Math.floor((hash(row * LENGTH + i, 1001) + 0.5) * VOCABULARY),
    ),
  );

  beforeAll(() => {
    const shapes = shapesOf(sizes);
    expect(shapes.size).toBe(expected.tensors);
    const names = [...shapes.keys()].sort();
    const tensors = new Map(
      names.map((name, t) => {
        const shape = shapes.get(name) ?? [];
        return [name, [shape, valuesOf(name, shape, t)]] as const;
      }),
    );
    writeFileSync(join(folder, 'model.safetensors'), safetensors(tensors));
    writeFileSync(join(folder, 'config.json'), JSON.stringify(configOf(sizes)));
  });

  afterAll(() => {
    rmSync(folder, { recursive: true });
  });

  test('embeddings and logits through the public face', async () => {
    const model = await Siglip2.load(folder);
    try {
      const inputs = pixels.map((pixelValues, i) => ({
        pixelValues,
        ...(grids === undefined ? {} : { spatialShape: grids[i] }),
      }));
      const texts = ids.map((inputIds) => ({ inputIds }));
      const pooled = await model.embedImages(inputs, { normalize: false });
      const projected = await model.embedTexts(texts, { normalize: false });
      expected.pooled.forEach(([first, norm], i) => {
        close(`image ${String(i)}`, pooled[i].subarray(0, 6), first);
        close(`norm of image ${String(i)}`, [Math.hypot(...pooled[i])], [norm]);
      });
      expected.projected.forEach(([first, norm], i) => {
        close(`text ${String(i)}`, projected[i].subarray(0, 6), first);
        close(`norm of text ${String(i)}`, [Math.hypot(...projected[i])], [norm]);
      });
      const images = await model.embedImages(inputs);
      const words = await model.embedTexts(texts);
      const logits = words.flatMap((text) =>
        images.map(
          (image) =>
            model.logitScale * text.reduce((sum, value, e) => sum + value * image[e], 0) +
            model.logitBias,
        ),
      );
      close('logits', logits, expected.logitsPerText);
    } finally {
      model.dispose();
    }
  });

  test('tokens and loss', async () => {
    const { config, parameters } = await loadCheckpoint(folder);
    const flat = pixels.flatMap((values) => [...values]);
    const mask = (grids ?? []).flatMap(([h, w]) =>
      Array.from({ length: budget ?? 0 }, (_, i) => (i < h * w ? 1 : 0)),
    );
    const run = await runTwoTowers(config, parameters, {
      images:
        grids === undefined
          ? ndArray([BATCH, 3, side, side], flat)
          : {
              patches: ndArray([BATCH, budget ?? 0, patch * patch * 3], flat),
              mask: ndArray([BATCH, budget ?? 0], mask),
              shapes: ndArray([BATCH, 2], grids.flat()),
            },
      ids: ndArray(
        [BATCH, LENGTH],
        ids.flatMap((row) => [...row]),
      ),
    });
    for (const { leaf } of flatten(parameters)) (leaf as DeviceArray).dispose();
    close('loss', run.loss, [expected.loss]);
    const { visionTokens = [], textTokens = [] } = expected;
    const first = (tap: string): number[] => Array.from(run.taps.get(tap) ?? []).slice(0, 4);
    close('vision tokens', first('vision.tokens').slice(0, visionTokens.length), visionTokens);
    close('text tokens', first('text.tokens').slice(0, textTokens.length), textTokens);
  });
});
