import { join } from 'node:path';
import { flatten } from '../../lib/graph';
import type { StoredTensor } from '../../lib/weights';
import {
  bigVisionName,
  loadBigVision,
  openSafetensors,
  readBigVision,
  toBigVision,
  writeSafetensors,
} from '../../lib/weights';
import { describeGolden } from '../golden_cases/golden';
import { bigVisionTowers } from '../golden_cases/subject';
import { leaves } from '../reference/tree';
import { temporaryFolder } from './files';
import { smallConfig, smallParameters } from './small_model';

const folder = temporaryFolder();

test.each([
  ['logitScale', 't'],
  ['logitBias', 'b'],
  ['vision.patchEmbedding.weight', 'img/embedding/kernel'],
  ['vision.positions', 'img/pos_embedding'],
  ['vision.blocks.7.norm2.weight', 'img/Transformer/encoderblock_7/LayerNorm_1/scale'],
  [
    'vision.blocks.7.attention.query.weight',
    'img/Transformer/encoderblock_7/MultiHeadDotProductAttention_0/query/kernel',
  ],
  ['vision.norm.bias', 'img/Transformer/encoder_norm/bias'],
  ['vision.head.probe', 'img/MAPHead_0/probe'],
  ['vision.head.norm.weight', 'img/MAPHead_0/LayerNorm_0/scale'],
  ['vision.head.mlp.fc2.weight', 'img/MAPHead_0/MlpBlock_0/Dense_1/kernel'],
  ['text.tokens', 'txt/Embed_0/embedding'],
  [
    'text.blocks.0.attention.out.bias',
    'txt/Encoder_0/encoderblock_0/MultiHeadDotProductAttention_0/out/bias',
  ],
  ['text.head.weight', 'txt/head/kernel'],
])('%s is %s', (path, name) => {
  expect(bigVisionName(path)).toBe(name);
});

/** Through a file, since big_vision's names are read from any container. */
async function stored(tensors: ReturnType<typeof toBigVision>, prefix: string): Promise<string> {
  const path = join(folder(), 'a.safetensors');
  const entries = Array.from(tensors, ([name, { shape, data }]): [string, StoredTensor] => [
    prefix + name,
    { dtype: 'F32', shape, data },
  ]);
  await writeSafetensors(path, new Map(entries));
  return path;
}

describe.each([
  ['fixed', false],
  ['fixed', true],
  ['naflex', false],
  ['naflex', true],
] as const)('%s, blocks stacked %p', (layout, stacked) => {
  test('there and back', async () => {
    const config = smallConfig(layout);
    const parameters = smallParameters(config);
    const tensors = toBigVision(config, parameters, { stacked });
    expect(tensors.has('img/Transformer/encoderblock/LayerNorm_0/scale')).toBe(stacked);
    expect(tensors.get('img/embedding/kernel')?.shape).toEqual(
      layout === 'fixed' ? [4, 4, 3, 12] : [48, 12],
    );
    expect(tensors.get('img/pos_embedding')?.shape).toEqual(
      layout === 'fixed' ? [1, 9, 12] : [3, 3, 12],
    );
    using file = openSafetensors(await stored(tensors, stacked ? 'params/' : ''));
    const read = await readBigVision(file, layout === 'fixed' ? { imageSize: 14 } : {});
    expect(read.config).toEqual(config);
    expect(flatten(read.parameters)).toEqual(flatten(parameters));
  });
});

test('kernels are transposed, heads kept apart', () => {
  const config = smallConfig('fixed');
  const parameters = smallParameters(config);
  const tensors = toBigVision(config, parameters);
  const { weight } = parameters.vision.blocks[1].attention.query;
  const query = tensors.get(
    'img/Transformer/encoderblock_1/MultiHeadDotProductAttention_0/query/kernel',
  );
  expect(query?.shape).toEqual([12, 3, 4]);
  // Input 5, head 2, place 3 in the head: output 2 · 4 + 3.
  expect(query?.data[5 * 12 + 2 * 4 + 3]).toBe(weight[(2 * 4 + 3) * 12 + 5]);
  const patch = tensors.get('img/embedding/kernel');
  // Row 1, column 2, colour 0, output 7: ours runs (output, colour, row, column).
  expect(patch?.data[((1 * 4 + 2) * 3 + 0) * 12 + 7]).toBe(
    parameters.vision.patchEmbedding.weight[7 * 48 + 0 * 16 + 1 * 4 + 2],
  );
});

describe('readBigVision refuses', () => {
  const broken = async (
    change: (tensors: ReturnType<typeof toBigVision>) => void,
  ): Promise<unknown> => {
    const config = smallConfig('fixed');
    const tensors = toBigVision(config, smallParameters(config));
    change(tensors);
    using file = openSafetensors(await stored(tensors, ''));
    return await readBigVision(file);
  };
  test('other tensors, missing tensors, shapes that do not fit', async () => {
    await expect(
      broken((tensors) =>
        tensors.set('img/head/kernel', { shape: [1], data: new Float32Array(1) }),
      ),
    ).rejects.toThrow('got 1 others: img/head/kernel');
    await expect(broken((tensors) => tensors.delete('t'))).rejects.toThrow('must include t');
    await expect(
      broken((tensors) => tensors.set('t', { shape: [2], data: new Float32Array(2) })),
    ).rejects.toThrow('t must have shape [1]');
    await expect(
      broken((tensors) =>
        tensors.set('img/pos_embedding', { shape: [1, 8, 12], data: new Float32Array(96) }),
      ),
    ).rejects.toMatchObject({ code: 'ERR_CONFIG' });
    await expect(
      broken((tensors) =>
        tensors.set('txt/head/kernel', { shape: [0, 12], data: new Float32Array(0) }),
      ),
    ).rejects.toThrow('positive extents');
  });
});

// The reference's own archive, in the layout with stacked blocks, against the golden tensors mapped
// by code that knows nothing of ours.
describeGolden('bv_two_towers_fixed', (golden) => {
  test('checkpoint_scan_layout.npz', async () => {
    const { config, parameters } = await loadBigVision(
      join(golden.folder, 'checkpoint_scan_layout.npz'),
    );
    expect(config).toEqual({
      vision: {
        width: 48,
        depth: 2,
        mlpWidth: 128,
        heads: 3,
        layout: 'fixed',
        patch: 8,
        imageSize: 32,
        positions: 16,
        pool: 'map',
      },
      text: {
        width: 48,
        depth: 2,
        mlpWidth: 128,
        heads: 3,
        vocabulary: 211,
        length: 16,
        pool: 'last',
      },
      embedding: 48,
      layerNormEps: 1e-6,
    });
    const { tree, names } = bigVisionTowers(golden, 'param');
    const expected = new Map(leaves(tree));
    const actual = flatten(parameters);
    expect(actual.map(({ path }) => path).sort()).toEqual([...expected.keys()].sort());
    for (const { path, leaf } of actual) {
      expect(bigVisionName(path)).toBe(names.get(path));
      expect([path, Array.from(leaf as Float32Array)]).toEqual([
        path,
        Array.from(expected.get(path)?.data ?? []),
      ]);
    }
  });
});
