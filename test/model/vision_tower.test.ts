import { compile, gradient } from '../../lib/graph';
import * as ops from '../../lib/ops';
import type { ModelConfig } from '../../lib/model';
import {
  packedInputSpecs,
  packedRows,
  visionInputSpecs,
  visionParameters,
  visionTower,
} from '../../lib/model';
import type { Value } from '../nn/evaluate';
import {
  bytes,
  evaluate,
  integers,
  maxDifference,
  nd,
  random,
  randomParameter,
  values,
} from '../nn/evaluate';
import { fixedConfig, naflexConfig } from '../nn/towers';
import { positionResize } from '../reference/position_resize';

const { patch, width } = fixedConfig.vision;
const inputs = 3 * patch * patch;

function run(
  config: ModelConfig,
  parameters: object,
  input: object,
): Promise<Record<string, Float32Array>> {
  return evaluate({ parameters, input } as never, (x: never) => {
    const { parameters: p, input: i } = x as {
      parameters: Parameters<typeof visionTower>[0];
      input: Parameters<typeof visionTower>[2];
    };
    return visionTower(p, config, i);
  });
}

/** Rows of patches in (row, column, colour) order, with a weight for them, as images see them. */
function naflexTwin(
  config: ModelConfig,
  images: Value,
  weight: Value,
): { patches: Value; weight: Value } {
  const side = images.shape[3];
  const grid = Math.floor(side / patch);
  const rows: number[] = [];
  for (let b = 0; b < images.shape[0]; b++) {
    for (let cell = 0; cell < grid * grid; cell++) {
      const [top, left] = [patch * Math.floor(cell / grid), patch * (cell % grid)];
      for (let y = 0; y < patch; y++) {
        for (let x = 0; x < patch; x++) {
          for (let c = 0; c < 3; c++) {
            rows.push(images.data[((b * 3 + c) * side + top + y) * side + left + x]);
          }
        }
      }
    }
  }
  const reordered: number[] = [];
  for (let d = 0; d < config.vision.width; d++) {
    for (let cell = 0; cell < patch * patch; cell++) {
      for (let c = 0; c < 3; c++)
        reordered.push(weight.data[d * inputs + c * patch * patch + cell]);
    }
  }
  return {
    patches: values([images.shape[0], grid * grid, inputs], rows),
    weight: values(weight.shape, reordered),
  };
}

const visionSpec = { patches: [2, 12, inputs], shapes: [3, 4, 2, 5] } as const;
const naflexInput = {
  patches: random('patches', visionSpec.patches),
  shapes: integers([2, 2], visionSpec.shapes),
  mask: bytes([2, 12], [...Array<number>(12).fill(1), ...Array<number>(10).fill(1), 0, 0]),
};

describe('fixed layout', () => {
  const parameters = visionParameters(fixedConfig, randomParameter);
  const images = random('images', [2, 3, 13, 13], 0.5);

  test('gives tokens, pooled token and unit embedding, every stage tapped', async () => {
    const result = await run(fixedConfig, parameters, { images });
    const lengths = Object.fromEntries(Object.entries(result).map(([k, v]) => [k, v.length]));
    const tokens = 2 * 9 * width;
    expect(lengths).toEqual({
      tokens,
      pooled: 2 * width,
      embedding: 2 * width,
      'vision.patchEmbedding': tokens,
      'vision.embedded': tokens,
      ...Object.fromEntries(
        [0, 1].flatMap((i) =>
          ['attention', 'attentionResidual', 'mlp', 'output'].map((stage) => [
            `vision.blocks.${String(i)}.${stage}`,
            tokens,
          ]),
        ),
      ),
      'vision.tokens': tokens,
      'vision.pooled': 2 * width,
      'vision.embedding': 2 * width,
    });
    for (let b = 0; b < 2; b++) {
      const row = result.embedding.subarray(b * width, (b + 1) * width);
      expect(Math.hypot(...row)).toBeCloseTo(1, 5);
    }
  });

  test('pixels beyond the last whole patch are not seen', async () => {
    const spoiled = values(images.shape, images.data);
    for (let i = 0; i < spoiled.data.length; i++) {
      if (i % 13 === 12 || Math.floor(i / 13) % 13 === 12) spoiled.data[i] = 1e6;
    }
    const before = await run(fixedConfig, parameters, { images });
    const after = await run(fixedConfig, parameters, { images: spoiled });
    expect(after).toEqual(before);
  });

  test('an image of the batch does not see the others', async () => {
    const both = await run(fixedConfig, parameters, { images });
    const second = values([1, 3, 13, 13], images.data.subarray(3 * 13 * 13));
    const alone = await run(fixedConfig, parameters, { images: second });
    expect(maxDifference(alone.pooled, both.pooled.subarray(width))).toBeLessThan(1e-5);
  });

  test('without a head there are tokens and nothing else', async () => {
    const config = { ...fixedConfig, vision: { ...fixedConfig.vision, pool: 'none' } } as const;
    const headless = visionParameters(config, randomParameter);
    const result = await run(config, headless, { images });
    expect(Object.keys(result)).not.toContain('pooled');
    const full = await run(fixedConfig, parameters, { images });
    expect(result.tokens).toEqual(full.tokens);
  });

  test.each([
    [
      { images: random('i', [2, 3, 12, 12]) },
      'images must have shape [2, 3, 13, 13], got [2, 3, 12, 12]',
    ],
    [{ images: random('i', [2, 13, 13, 3]) }, 'images must have shape'],
    [{ images: bytes([1, 3, 13, 13], new Uint8Array(507)) }, 'images must be float32'],
    [naflexInput, 'input must be { images } for a fixed-resolution tower'],
  ])('wrong input %#', async (input, message) => {
    await expect(run(fixedConfig, parameters, input)).rejects.toThrow(`visionTower: ${message}`);
  });

  test('weights of another model are refused', async () => {
    const other = { ...parameters, positions: random('p', [8, width]) };
    await expect(run(fixedConfig, other, { images })).rejects.toThrow('[9, 24]');
  });
});

describe('naflex layout', () => {
  const parameters = visionParameters(naflexConfig, randomParameter);

  // The trained grid, 16 × 16 as in the released models.
  test('an unpadded image on the trained grid equals the fixed tower with the same weights', async () => {
    const side = 16 * patch;
    const fixed: ModelConfig = {
      ...fixedConfig,
      vision: { ...fixedConfig.vision, layout: 'fixed', imageSize: side, positions: 256 },
    };
    const naflex: ModelConfig = {
      ...naflexConfig,
      vision: { ...naflexConfig.vision, positions: 256 },
    };
    const weights = visionParameters(fixed, randomParameter);
    const images = random('images', [2, 3, side, side], 0.5);
    const twin = naflexTwin(fixed, images, weights.patchEmbedding.weight);
    const expected = await run(fixed, weights, { images });
    const actual = await run(
      naflex,
      { ...weights, patchEmbedding: { ...weights.patchEmbedding, weight: twin.weight } },
      {
        patches: twin.patches,
        shapes: integers([2, 2], [16, 16, 16, 16]),
        mask: bytes([2, 256], new Uint8Array(512).fill(1)),
      },
    );
    for (const stage of ['vision.embedded', 'tokens', 'pooled', 'embedding']) {
      expect(maxDifference(actual[stage], expected[stage])).toBeLessThan(1e-5);
    }
  });

  test('padding changes nothing, whatever it holds', async () => {
    const short = {
      patches: values([1, 10, inputs], naflexInput.patches.data.subarray(12 * inputs, 22 * inputs)),
      shapes: integers([1, 2], [2, 5]),
      mask: bytes([1, 10], new Uint8Array(10).fill(1)),
    };
    const spoiled = values(naflexInput.patches.shape, naflexInput.patches.data);
    spoiled.data.fill(1e3, 22 * inputs);
    const alone = await run(naflexConfig, parameters, short);
    const padded = await run(naflexConfig, parameters, naflexInput);
    const other = await run(naflexConfig, parameters, { ...naflexInput, patches: spoiled });
    expect(maxDifference(padded.pooled.subarray(width), alone.pooled)).toBeLessThan(1e-5);
    expect(
      maxDifference(padded.tokens.subarray(12 * width, 22 * width), alone.tokens),
    ).toBeLessThan(1e-5);
    expect(other.pooled).toEqual(padded.pooled);
  });

  test('padding gets no gradient', async () => {
    const { dpatches } = await evaluate({ parameters, ...naflexInput }, (x) => {
      const { pooled } = visionTower(x.parameters, naflexConfig, x);
      if (pooled === undefined) throw new Error('the tower has a head');
      return { dpatches: gradient(ops.dot(pooled, pooled), x.patches) };
    });
    expect(Math.max(...dpatches.subarray(0, 22 * inputs).map(Math.abs))).toBeGreaterThan(1e-3);
    expect(dpatches.subarray(22 * inputs).every((value) => value === 0)).toBe(true);
  });

  describe('packed', () => {
    const rows = 24; // 12 + 10 patches and two rows of no image
    const packed = (spare: number, shapes = visionSpec.shapes as readonly number[]): object => ({
      patches: values(
        [rows, inputs],
        naflexInput.patches.data.map((value, i) => (i < 22 * inputs ? value : spare)),
      ),
      shapes: integers([2, 2], shapes),
      segments: integers([3], [0, 12, 22]),
    });

    test('gives what the padded batch gives', async () => {
      const padded = await run(naflexConfig, parameters, naflexInput);
      const actual = await run(naflexConfig, parameters, packed(0));
      expect(Object.keys(actual)).toEqual(Object.keys(padded));
      for (const [name, expected] of Object.entries(padded)) {
        // The tokens of both images come first either way: the padding is at the end of the second.
        const real = name.endsWith('pooled') || name.endsWith('embedding') ? 2 : 22;
        const [a, b] = [actual[name], expected].map((x) => x.subarray(0, real * width));
        expect(maxDifference(a, b)).toBeLessThan(1e-5);
      }
    });

    test('rows of no image change nothing and stay finite', async () => {
      const before = await run(naflexConfig, parameters, packed(0));
      const after = await run(naflexConfig, parameters, packed(1e3));
      expect(after.embedding).toEqual(before.embedding);
      expect(after.tokens.subarray(0, 22 * width)).toEqual(before.tokens.subarray(0, 22 * width));
      for (const stage of Object.values(before)) {
        expect(stage.every((value) => Number.isFinite(value))).toBe(true);
      }
    });

    test('gradients are those of the padded batch, and rows of no image get none', async () => {
      const [padded, actual] = await Promise.all(
        [naflexInput, packed(0.5)].map((input) =>
          evaluate({ parameters, input } as never, (x: never) => {
            const { parameters: p, input: i } = x as {
              parameters: Parameters<typeof visionTower>[0];
              input: Parameters<typeof visionTower>[2];
            };
            const { pooled } = visionTower(p, naflexConfig, i);
            if (pooled === undefined || !('patches' in i)) throw new Error('a NaFlex tower');
            return gradient(ops.dot(pooled, pooled), { parameters: p, patches: i.patches });
          }),
        ),
      );
      const { patches, ...gradients } = actual;
      expect(Object.keys(gradients).length).toBeGreaterThan(40);
      for (const [name, values_] of Object.entries(gradients)) {
        if (!name.startsWith('parameters')) continue;
        const size = Math.max(...padded[name].map(Math.abs));
        expect(maxDifference(values_, padded[name])).toBeLessThan(1e-5 * (1 + size));
      }
      const real = [patches, padded.patches].map((x) => x.subarray(0, 22 * inputs));
      expect(maxDifference(real[0], real[1])).toBeLessThan(1e-4);
      expect(patches.subarray(22 * inputs).every((value) => value === 0)).toBe(true);
    });

    test.each([
      [[3, 4, 5, 3], 'shapes[1] must be at least 1 x 1 and have 10 positions, got 5 x 3'],
      [[3, 3, 2, 5], 'shapes[0] must be at least 1 x 1 and have 12 positions, got 3 x 3'],
    ])('grids %p that are not the segments are refused', async (shapes, message) => {
      await expect(run(naflexConfig, parameters, packed(0, shapes))).rejects.toThrow(message);
    });

    test.each([
      [[1, 12, 22], 'segments[0] must be 0, got 1'],
      [[0, 12, 25], 'segments[2] must be in [12, 24], got 25'],
      [[0, 12, 11], 'segments[2] must be in [12, 24], got 11'],
    ])('segments %p are refused', async (starts, message) => {
      const input = { ...packed(0), segments: integers([3], starts) };
      await expect(run(naflexConfig, parameters, input)).rejects.toThrow(message);
    });
  });

  test.each([
    [
      { images: random('i', [2, 3, 13, 13]) },
      'input must be { patches, shapes, mask } or { patches, shapes, segments } for a NaFlex tower',
    ],
    [{ ...naflexInput, patches: random('p', [2, 12, 47]) }, 'patches must have shape [2, 12, 48]'],
    [{ ...naflexInput, patches: random('p', [2, 48]) }, 'patches must have shape (B, L, P·P·3)'],
    [{ ...naflexInput, mask: bytes([2, 11], new Uint8Array(22)) }, 'mask must have shape [2, 12]'],
    [{ ...naflexInput, mask: random('m', [2, 12]) }, 'mask must be uint8'],
    [{ ...naflexInput, shapes: integers([2, 3], [1, 1, 1, 1, 1, 1]) }, 'shapes must have shape'],
  ])('wrong input %#', async (input, message) => {
    await expect(run(naflexConfig, parameters, input)).rejects.toThrow(`visionTower: ${message}`);
  });
});

test('visionInputSpecs are what the towers take', () => {
  for (const [config, length] of [
    [fixedConfig, undefined],
    [naflexConfig, undefined],
    [naflexConfig, 20],
  ] as const) {
    const specs = {
      parameters: visionParameters(config, (spec) => spec),
      input: visionInputSpecs(config, 2, length),
    };
    const program = compile('specs', (x) => visionTower(x.parameters, config, x.input), specs);
    expect(program.memory.peakBytes).toBeGreaterThan(0);
    program.dispose();
  }
});

test('packedInputSpecs are what a NaFlex tower takes', () => {
  const specs = {
    parameters: visionParameters(naflexConfig, (spec) => spec),
    input: packedInputSpecs(naflexConfig, 3, 40),
  };
  const program = compile('specs', (x) => visionTower(x.parameters, naflexConfig, x.input), specs);
  expect(program.memory.peakBytes).toBeGreaterThan(0);
  program.dispose();
});

test('packedRows rounds up by a sixteenth at most, and few numbers come out', () => {
  const all = Array.from({ length: 16384 }, (_, i) => i + 1);
  for (const patches of all) {
    expect(packedRows(patches)).toBeGreaterThanOrEqual(patches);
    expect(packedRows(patches)).toBeLessThan(patches + Math.min(64, Math.max(8, patches / 8)));
  }
  const upTo = (n: number): number => new Set(all.slice(n / 2, n).map(packedRows)).size;
  expect([256, 1024, 4096].map(upTo)).toEqual([16, 16, 32]);
});

describe('masked patches', () => {
  const given = {
    parameters: visionParameters(fixedConfig, randomParameter),
    images: random('images', [2, 3, 13, 13]),
    maskToken: random('maskToken', [24]),
    mask: bytes([2, 9], [0, 1, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
  };
  const tokens = (values: typeof given): Promise<Record<string, Float32Array>> =>
    evaluate(values, ({ parameters, images, mask, maskToken }) => {
      const masked = { mask, maskToken };
      return visionTower(parameters, fixedConfig, { images }, { masked });
    });

  test('are the mask token before their positions', async () => {
    const taps = await tokens(given);
    const [patchEmbedding, embedded] = [taps['vision.patchEmbedding'], taps['vision.embedded']];
    const { positions } = given.parameters;
    embedded.forEach((value, i) => {
      const [row, d] = [Math.floor(i / 24), i % 24];
      const patchOrToken = given.mask.data[row] ? given.maskToken.data[d] : patchEmbedding[i];
      expect(value).toBeCloseTo(patchOrToken + positions.data[(row % 9) * 24 + d], 5);
    });
  });

  test('without any, nothing changes', async () => {
    const none = await tokens({ ...given, mask: bytes([2, 9], new Uint8Array(18)) });
    const plain = await run(fixedConfig, given.parameters, { images: given.images });
    expect(none.tokens).toEqual(plain.tokens);
  });

  test('get no gradient, the mask token does', async () => {
    const results = await evaluate(given, ({ parameters, images, mask, maskToken }) => {
      const { pooled } = visionTower(
        parameters,
        fixedConfig,
        { images },
        { masked: { mask, maskToken } },
      );
      const loss = pooled === undefined ? ops.dot(maskToken, maskToken) : ops.dot(pooled, pooled);
      return { gradients: gradient(loss, { images, maskToken }) };
    });
    expect(Math.max(...results['gradients.maskToken'].map(Math.abs))).toBeGreaterThan(1e-4);
    results['gradients.images'].forEach((value, i) => {
      const [b, y, x] = [Math.floor(i / 507), Math.floor((i % 169) / 13), i % 13];
      if (y === 12 || x === 12) return;
      const hidden = given.mask.data[b * 9 + 3 * Math.floor(y / patch) + Math.floor(x / patch)];
      expect(value === 0).toBe(hidden === 1);
    });
  });

  test('a mask of another shape is refused', async () => {
    const wrong = tokens({ ...given, mask: bytes([2, 8], new Uint8Array(16)) });
    await expect(wrong).rejects.toThrow('mask must have shape [2, 9]');
  });

  test('are refused of NaFlex patches', () => {
    const parameters = visionParameters(naflexConfig, randomParameter);
    expect(() =>
      compile(
        'masked',
        (t) =>
          visionTower(t.parameters, naflexConfig, t.input, {
            masked: { mask: t.input.mask, maskToken: t.parameters.norm.bias },
          }),
        { parameters, input: naflexInput },
      ),
    ).toThrow('masked and imageSize must be left out');
  });
});

describe('images of another size', () => {
  const parameters = visionParameters(fixedConfig, randomParameter);
  const tower = (images: Value, imageSize?: number): Promise<Record<string, Float32Array>> =>
    evaluate({ parameters, images }, (t) =>
      visionTower(t.parameters, fixedConfig, { images: t.images }, { imageSize }),
    );

  test('get the positions of the grid resized to theirs', async () => {
    const images = random('local', [2, 3, 8, 8]);
    const taps = await tower(images, 8);
    const [patchEmbedding, embedded] = [taps['vision.patchEmbedding'], taps['vision.embedded']];
    const resized = positionResize(nd(parameters.positions), nd(integers([1, 2], [2, 2])), 4);
    embedded.forEach((value, i) => {
      expect(value).toBeCloseTo(patchEmbedding[i] + resized.data[i % (4 * 24)], 5);
    });
  });

  test('of the published sizes: first row of weights from 16 to 6 cells', () => {
    const grid = values(
      [256, 1],
      Array.from({ length: 256 }, (_, i) => (i % 16 < 4 ? [1, 10, 100, 1000][i % 16] : 0)),
    );
    const [first] = positionResize(nd(grid), nd(integers([1, 2], [6, 6])), 36).data;
    const expected = 0.289474 + 3.94737 + 23.6842 + 78.947;
    expect(Math.abs(first - expected)).toBeLessThan(1e-3);
  });

  test('that is the usual one take the usual path', async () => {
    const images = random('images', [2, 3, 13, 13]);
    expect(await tower(images, 13)).toEqual(await tower(images));
  });

  test('must be announced', async () => {
    const images = random('local', [2, 3, 8, 8]);
    await expect(tower(images)).rejects.toThrow('images must have shape [2, 3, 13, 13]');
    await expect(tower(images, 12)).rejects.toThrow('images must have shape [2, 3, 12, 12]');
  });
});
