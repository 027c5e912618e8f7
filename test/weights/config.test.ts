import { formatConfig, parseConfig } from '../../lib/weights';
import { SiglipError } from '../../lib/errors';
import { releases, variant } from '../../lib/model';
import { smallConfig } from './small_model';

// The content of published files, sparse as they are.
const SO400M = {
  architectures: ['SiglipModel'],
  initializer_factor: 1.0,
  model_type: 'siglip',
  text_config: {
    hidden_size: 1152,
    intermediate_size: 4304,
    model_type: 'siglip_text_model',
    num_attention_heads: 16,
    num_hidden_layers: 27,
  },
  torch_dtype: 'float32',
  vision_config: {
    hidden_size: 1152,
    image_size: 384,
    intermediate_size: 4304,
    model_type: 'siglip_vision_model',
    num_attention_heads: 16,
    num_hidden_layers: 27,
    patch_size: 14,
  },
};
const BASE = {
  initializer_factor: 1.0,
  model_type: 'siglip',
  text_config: { model_type: 'siglip_text_model', vocab_size: 256000 },
  vision_config: { model_type: 'siglip_vision_model' },
};
const NAFLEX = {
  architectures: ['Siglip2Model'],
  model_type: 'siglip2',
  text_config: { model_type: 'siglip2_text_model', vocab_size: 256000 },
  vision_config: { model_type: 'siglip2_vision_model' },
};

describe('parseConfig', () => {
  test('published files and the defaults they leave out', () => {
    expect(parseConfig(BASE)).toEqual(variant('B/16', { imageSize: 224 }));
    expect(parseConfig(NAFLEX)).toEqual(variant('B/16', { layout: 'naflex' }));
    expect(parseConfig(SO400M)).toEqual(
      variant('So400m/14', { imageSize: 384, vocabulary: 32000 }),
    );
    expect(parseConfig(SO400M).vision.positions).toBe(27 * 27);
  });

  test('nothing but a model type is a model', () => {
    expect(parseConfig({ model_type: 'siglip' })).toEqual(
      variant('B/16', { imageSize: 224, vocabulary: 32000 }),
    );
    expect(parseConfig({ model_type: 'siglip', text_config: null })).toEqual(
      parseConfig({ model_type: 'siglip' }),
    );
  });

  test('a giant-like model takes its embedding from projection_size', () => {
    const config = parseConfig({
      model_type: 'siglip',
      text_config: { hidden_size: 24, num_attention_heads: 4, projection_size: 48 },
      vision_config: { hidden_size: 48, num_attention_heads: 4 },
    });
    expect(config.embedding).toBe(48);
  });

  test('the kind of model is its model_type, never a name', () => {
    expect(parseConfig({ ...BASE, architectures: ['Siglip2Model'] }).vision.layout).toBe('fixed');
  });

  test('attention dropout and unknown keys do not matter; a vision tower may have no head', () => {
    const config = parseConfig({
      ...BASE,
      text_config: { ...BASE.text_config, attention_dropout: 0.1, future: { x: 1 } },
      vision_config: { vision_use_head: false },
    });
    expect(config.vision.pool).toBe('none');
  });

  const text = (change: object): object => ({ ...BASE, text_config: change });
  const vision = (change: object): object => ({ ...BASE, vision_config: change });
  test.each<[string, unknown]>([
    ['config.json: content must be an object, got 5', 5],
    ['config.json: content must be an object, got null', null],
    ['config.json: model_type must be siglip or siglip2, got nothing', {}],
    [
      'model_type must be siglip (fixed resolution) or siglip2 (NaFlex), got clip',
      { model_type: 'clip' },
    ],
    ['this is a vision tower alone', { model_type: 'siglip_vision_model' }],
    ['this is a text tower alone', { model_type: 'siglip2_text_model' }],
    ['text_config: content must be an object, got "x"', { ...BASE, text_config: 'x' }],
    [
      'text_config: hidden_size must be a positive integer, got "768"',
      text({ hidden_size: '768' }),
    ],
    ['text_config: vocab_size must be a positive integer, got 0', text({ vocab_size: 0 })],
    [
      'text_config: hidden_act must be gelu_pytorch_tanh (the only activation of SigLIP), got "gelu"',
      text({ hidden_act: 'gelu' }),
    ],
    [
      'num_hidden_layers must be an integer from 1 to 1000, got 1000000000',
      text({ num_hidden_layers: 1e9 }),
    ],
    [
      'vision_config: num_channels must be 3 (red, green, blue), got 4',
      vision({ num_channels: 4 }),
    ],
    ['vision_config: patch_size must be a positive integer, got 1.5', vision({ patch_size: 1.5 })],
    [
      'layer_norm_eps must be the same in both towers, got 0.00001 (text) and 0.000001 (vision)',
      text({ layer_norm_eps: 1e-5 }),
    ],
    ['embedding must be the vision width 768', text({ projection_size: 512 })],
    ['heads must be a divisor of the width 768, got 7', vision({ num_attention_heads: 7 })],
    ['positions must be the square', { ...NAFLEX, vision_config: { num_patches: 200 } }],
  ])('refuses: %s', (message, content) => {
    expect(() => parseConfig(content)).toThrow(message);
    expect(() => parseConfig(content)).toThrow(SiglipError);
  });
});

describe('formatConfig', () => {
  test.each(
    releases.map(({ repository, variant: name, options }) => ({ repository, name, options })),
  )('$repository comes back', ({ name, options }) => {
    const config = variant(name, options);
    const json = formatConfig(config);
    expect(parseConfig(JSON.parse(JSON.stringify(json)))).toEqual(config);
    expect(json.model_type).toBe(config.vision.layout === 'fixed' ? 'siglip' : 'siglip2');
  });

  test('small models, with and without a head', () => {
    for (const layout of ['fixed', 'naflex'] as const) {
      for (const pool of ['map', 'none'] as const) {
        const config = smallConfig(layout, pool);
        expect(parseConfig(formatConfig(config))).toEqual(config);
      }
    }
  });

  test('other poolings of texts are not for this format', () => {
    const config = smallConfig('fixed');
    const other = { ...config, text: { ...config.text, pool: 'map' } } as const;
    expect(() => formatConfig(other)).toThrow('text.pool must be last');
  });
});
