import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { DeviceArray } from '../../lib/array';
import { flatten } from '../../lib/graph';
import type { ModelConfig } from '../../lib/model';
import { parameterTable, variant } from '../../lib/model';
import type { SaveCheckpointOptions, StoredTensor } from '../../lib/weights';
import {
  huggingFaceName,
  huggingFaceTensors,
  loadCheckpoint,
  openWeights,
  readModelConfig,
  saveCheckpoint,
  writeSafetensors,
} from '../../lib/weights';
import { put, temporaryFolder } from './files';
import { smallConfig, smallParameters } from './small_model';

const folder = temporaryFolder();

async function host(tree: unknown): Promise<Map<string, Float32Array>> {
  const entries = flatten(tree).map(async ({ path, leaf }) => {
    const array = leaf as DeviceArray<'float32'>;
    const values = await array.read();
    array.dispose();
    return [path, values] as const;
  });
  return new Map(await Promise.all(entries));
}

const save = (config: ModelConfig, options: Partial<SaveCheckpointOptions> = {}): Promise<void> =>
  saveCheckpoint(folder(), { config, parameters: smallParameters(config), ...options });

describe('names', () => {
  test.each([
    ['logitScale', 'logit_scale'],
    ['logitBias', 'logit_bias'],
    ['vision.patchEmbedding.weight', 'vision_model.embeddings.patch_embedding.weight'],
    ['vision.positions', 'vision_model.embeddings.position_embedding.weight'],
    ['vision.blocks.11.norm1.weight', 'vision_model.encoder.layers.11.layer_norm1.weight'],
    ['vision.blocks.0.attention.query.bias', 'vision_model.encoder.layers.0.self_attn.q_proj.bias'],
    ['text.blocks.3.attention.out.weight', 'text_model.encoder.layers.3.self_attn.out_proj.weight'],
    ['text.blocks.3.mlp.fc2.bias', 'text_model.encoder.layers.3.mlp.fc2.bias'],
    ['vision.norm.bias', 'vision_model.post_layernorm.bias'],
    ['text.norm.weight', 'text_model.final_layer_norm.weight'],
    ['text.tokens', 'text_model.embeddings.token_embedding.weight'],
    ['text.positions', 'text_model.embeddings.position_embedding.weight'],
    ['text.head.weight', 'text_model.head.weight'],
    ['vision.head.probe', 'vision_model.head.probe'],
    ['vision.head.norm.bias', 'vision_model.head.layernorm.bias'],
    ['vision.head.attention.value.weight', 'vision_model.head.attention.in_proj_weight'],
    ['vision.head.attention.key.bias', 'vision_model.head.attention.in_proj_bias'],
    ['vision.head.attention.out.bias', 'vision_model.head.attention.out_proj.bias'],
    ['vision.head.mlp.fc1.weight', 'vision_model.head.mlp.fc1.weight'],
  ])('%s is %s', (path, name) => {
    expect(huggingFaceName(path)).toBe(name);
  });

  test.each([
    ['B/16', 2 + (2 + 16 * 12 + 2 + 2) + (3 + 16 * 12 + 2 + 11)],
    ['So400m/14', 2 + (2 + 16 * 27 + 2 + 2) + (3 + 16 * 27 + 2 + 11)],
    ['g-opt/16', 2 + (2 + 16 * 27 + 2 + 2) + (3 + 16 * 40 + 2 + 11)],
  ] as const)('%s has %i tensors, every parameter in one', (name, count) => {
    const config = variant(name);
    const tensors = huggingFaceTensors(config);
    expect(tensors).toHaveLength(count);
    const paths = tensors.flatMap(({ parts }) => parts.map(({ path }) => path));
    expect(paths.sort()).toEqual(
      parameterTable(config)
        .map(({ path }) => path)
        .sort(),
    );
  });

  test('stored shapes', () => {
    const shape = (config: ModelConfig, name: string): readonly number[] | undefined =>
      huggingFaceTensors(config).find((tensor) => tensor.name === name)?.shape;
    const [fixed, naflex] = [smallConfig('fixed'), smallConfig('naflex')];
    const patch = 'vision_model.embeddings.patch_embedding.weight';
    expect(shape(fixed, patch)).toEqual([12, 3, 4, 4]);
    expect(shape(naflex, patch)).toEqual([12, 48]);
    expect(shape(fixed, 'vision_model.head.probe')).toEqual([1, 1, 12]);
    expect(shape(fixed, 'vision_model.head.attention.in_proj_weight')).toEqual([36, 12]);
    expect(shape(fixed, 'vision_model.head.attention.in_proj_bias')).toEqual([36]);
  });
});

describe('saveCheckpoint and loadCheckpoint', () => {
  test.each([
    ['fixed', 'map'],
    ['naflex', 'map'],
    ['fixed', 'none'],
  ] as const)('%s, head %s: everything comes back', async (layout, pool) => {
    const config = smallConfig(layout, pool);
    await save(config, { metadata: { steps: '100' } });
    expect(readdirSync(folder()).sort()).toEqual([
      'config.json',
      'model.safetensors',
      'preprocessor_config.json',
    ]);
    const loaded = await loadCheckpoint(folder());
    expect(loaded.config).toEqual(config);
    expect(loaded.preprocessor.layout).toBe(layout);
    const expected = new Map(
      flatten(smallParameters(config)).map(({ path, leaf }) => [path, leaf]),
    );
    expect(await host(loaded.parameters)).toEqual(expected);
  });

  test('what is on the device is saved as it is', async () => {
    const config = smallConfig('fixed');
    await save(config);
    const { parameters } = await loadCheckpoint(folder());
    const other = join(folder(), 'copy');
    await saveCheckpoint(other, { config, parameters });
    for (const { leaf } of flatten(parameters)) (leaf as DeviceArray).dispose();
    const bytes = (where: string): Buffer => readFileSync(join(where, 'model.safetensors'));
    expect(bytes(other).equals(bytes(folder()))).toBe(true);
  });

  test('16-bit weights', async () => {
    const config = smallConfig('fixed');
    for (const dtype of ['BF16', 'F16'] as const) {
      await save(config, { dtype });
      const loaded = await host((await loadCheckpoint(folder())).parameters);
      for (const { path, leaf } of flatten(smallParameters(config))) {
        const exact = leaf as Float32Array;
        const values = loaded.get(path) ?? [];
        // Below 2^-14 float16 keeps multiples of 2^-24 only.
        exact.forEach((value, i) => {
          expect(Math.abs(values[i] - value)).toBeLessThanOrEqual(Math.abs(value) / 256 + 2 ** -25);
        });
      }
    }
  });

  test('shards: written, loaded, and replaced by one file', async () => {
    const config = smallConfig('fixed');
    await save(config, { maxShardBytes: 4000 });
    const names = readdirSync(folder());
    expect(names).not.toContain('model.safetensors');
    expect(names).toContain('model.safetensors.index.json');
    expect(names.filter((name) => /^model-\d{5}-of-\d{5}/.test(name)).length).toBeGreaterThan(3);
    const expected = new Map(
      flatten(smallParameters(config)).map(({ path, leaf }) => [path, leaf]),
    );
    expect(await host((await loadCheckpoint(folder())).parameters)).toEqual(expected);
    writeFileSync(join(folder(), 'README.md'), 'kept');
    await save(config);
    expect(readdirSync(folder()).sort()).toEqual([
      'README.md',
      'config.json',
      'model.safetensors',
      'preprocessor_config.json',
    ]);
    await save(config, { maxShardBytes: 4000 });
    expect(readdirSync(folder())).not.toContain('model.safetensors');
  });

  test('parameters that are not those of the config are refused', async () => {
    const config = smallConfig('fixed');
    const parameters = smallParameters(config);
    const wrong = { ...parameters, logitScale: new Float32Array(2) };
    await expect(save(config, { parameters: wrong })).rejects.toThrow(
      'logitScale must have shape [1], got [2]',
    );
    const headless = smallParameters(smallConfig('fixed', 'none'));
    await expect(save(config, { parameters: headless })).rejects.toThrow(
      'vision.head.probe, got none',
    );
    await expect(save(smallConfig('fixed', 'none'), { parameters })).rejects.toThrow(
      'must be those of the config, got vision.head.probe too',
    );
    await expect(save(config, { maxShardBytes: 0 })).rejects.toThrow(
      'maxShardBytes must be positive',
    );
    await expect(save(config, { signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: 'ERR_ABORTED',
    });
    expect(readdirSync(folder())).toEqual([]);
  });
});

describe('loadCheckpoint refuses', () => {
  /** Rewrites the weights of a saved model after a change to the list of tensors. */
  async function rewrite(change: (tensors: Map<string, StoredTensor>) => void): Promise<void> {
    const weights = openWeights(folder());
    const tensors = new Map<string, StoredTensor>();
    for (const [name, { shape }] of weights.tensors) {
      tensors.set(name, { dtype: 'F32', shape, data: await weights.read(name) });
    }
    weights.dispose();
    change(tensors);
    await writeSafetensors(join(folder(), 'model.safetensors'), tensors);
  }
  const only =
    (pattern: RegExp) =>
    (tensors: Map<string, StoredTensor>): void => {
      for (const name of [...tensors.keys()]) if (!pattern.test(name)) tensors.delete(name);
    };
  const zeros = (...shape: number[]): StoredTensor => ({
    dtype: 'F32',
    shape,
    data: new Float32Array(shape.reduce((a, b) => a * b, 1)),
  });
  const renamed =
    (pattern: RegExp, to: string) =>
    (tensors: Map<string, StoredTensor>): void => {
      for (const [name, tensor] of [...tensors]) {
        tensors.delete(name);
        tensors.set(name.replace(pattern, to), tensor);
      }
    };

  test.each<[string, (tensors: Map<string, StoredTensor>) => void, string[]]>([
    [
      'missing and unexpected tensors, by name',
      (tensors) => {
        tensors.delete('logit_bias');
        tensors.set('extra', zeros(1));
      },
      ['1 missing and 1 unexpected', 'missing: logit_bias', 'unexpected: extra'],
    ],
    [
      'a classifier',
      (tensors) => {
        only(/^vision_model/u)(tensors);
        tensors.set('classifier.weight', zeros(2, 12));
      },
      ['image classifier', 'no text tower'],
    ],
    ['a vision tower alone', only(/^vision_model/u), ['this is the vision tower alone']],
    ['a text tower alone', only(/^text_model/u), ['this is the text tower alone']],
    [
      'a tower without prefix',
      (tensors) => {
        only(/^vision_model/u)(tensors);
        renamed(/^vision_model\./u, '')(tensors);
      },
      ['without the prefix'],
    ],
    ['names of open_clip', renamed(/^(?:vision|text)_model/u, 'visual'), ['open_clip']],
    ['a larger model', renamed(/^/u, 'model.vision_tower.'), ['a larger model']],
    [
      'fewer layers than the config says',
      (tensors) => {
        for (const name of [...tensors.keys()]) {
          if (name.startsWith('vision_model.encoder.layers.1.')) tensors.delete(name);
        }
      },
      ['16 missing', 'compare num_hidden_layers in vision_config, 2, with the 1 layers stored'],
    ],
    [
      'another number of positions',
      (tensors) => tensors.set('vision_model.embeddings.position_embedding.weight', zeros(16, 12)),
      ['must have shape [9, 12] by config.json, got [16, 12]', 'image_size'],
    ],
    [
      'another vocabulary',
      (tensors) => tensors.set('text_model.embeddings.token_embedding.weight', zeros(18, 8)),
      ['[17, 8] by config.json, got [18, 8]', 'vocab_size'],
    ],
    [
      'quantised weights',
      (tensors) =>
        tensors.set('text_model.head.bias', { dtype: 'U8', shape: [12], data: new Uint8Array(12) }),
      ['dtype of text_model.head.bias must be one of F64, F32, F16, BF16, got U8'],
    ],
  ])('%s', async (_, change, messages) => {
    await save(smallConfig('fixed'));
    await rewrite(change);
    const error = await loadCheckpoint(folder()).then(
      () => undefined,
      (reason: unknown) => reason,
    );
    expect(error).toMatchObject({ code: 'ERR_WEIGHTS' });
    for (const message of messages) expect(String(error)).toContain(message);
  });

  test('nothing that is only unusual: position_ids, scalars for numbers', async () => {
    await save(smallConfig('fixed'));
    await rewrite((tensors) => {
      tensors.set('text_model.embeddings.position_ids', zeros(1, 5));
      tensors.set('logit_scale', { dtype: 'F32', shape: [], data: Float32Array.of(2) });
    });
    const values = await host((await loadCheckpoint(folder())).parameters);
    expect(values.get('logitScale')).toEqual(Float32Array.of(2));
  });

  test('a processor of another model', async () => {
    await save(smallConfig('fixed'));
    put(folder(), 'preprocessor_config.json', '{"size": {"height": 28, "width": 28}}');
    await expect(loadCheckpoint(folder())).rejects.toThrow(
      'size must be 14 × 14 as in config.json, got 28 × 28',
    );
    await save(smallConfig('naflex'));
    put(folder(), 'preprocessor_config.json', '{"patch_size": 16}');
    await expect(loadCheckpoint(folder())).rejects.toThrow('patch_size must be 4');
    put(folder(), 'preprocessor_config.json', '{');
    await expect(loadCheckpoint(folder())).rejects.toMatchObject({ code: 'ERR_CONFIG' });
  });

  test('a processor saved whole; that of images alone goes before it', async () => {
    await save(smallConfig('fixed'));
    const part = (resample: number): object => ({ size: { height: 14, width: 14 }, resample });
    const whole = JSON.stringify({ image_processor: part(3), processor_class: 'SiglipProcessor' });
    put(folder(), 'processor_config.json', whole);
    const resample = async (): Promise<unknown> => {
      const { preprocessor, parameters } = await loadCheckpoint(folder());
      await host(parameters);
      return preprocessor.resample;
    };
    put(folder(), 'preprocessor_config.json', JSON.stringify(part(2)));
    expect(await resample()).toBe('bilinear');
    rmSync(join(folder(), 'preprocessor_config.json'));
    expect(await resample()).toBe('bicubic');
    put(folder(), 'processor_config.json', whole.replaceAll('14', '28'));
    await expect(loadCheckpoint(folder())).rejects.toThrow(
      /processor_config\.json: size must be 14 × 14/,
    );
  });

  test('folders that are no checkpoint', async () => {
    await expect(loadCheckpoint(join(folder(), 'none'))).rejects.toThrow('got no such folder');
    await expect(readModelConfig(folder())).rejects.toThrow('must hold config.json');
    await save(smallConfig('fixed'));
    rmSync(join(folder(), 'model.safetensors'));
    await expect(loadCheckpoint(folder())).rejects.toThrow('got neither model.safetensors nor');
  });

  test('an aborted signal', async () => {
    await save(smallConfig('fixed'));
    const signal = AbortSignal.abort();
    await expect(loadCheckpoint(folder(), { signal })).rejects.toMatchObject({
      code: 'ERR_ABORTED',
    });
  });
});
