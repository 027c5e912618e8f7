import { SiglipError } from '../../lib/errors';
import type { ModelConfig } from '../../lib/model';
import { checkConfig, gridSide } from '../../lib/model';
import { fixedConfig, naflexConfig } from '../nn/towers';

function change(config: ModelConfig, field: string, value: unknown): ModelConfig {
  if (!field.includes('.')) return { ...config, [field]: value };
  const [room, key] = field.split('.');
  return { ...config, [room]: { ...config[room as 'vision' | 'text'], [key]: value } };
}

test('a config that describes a model is returned as it is', () => {
  expect(checkConfig(fixedConfig)).toBe(fixedConfig);
  expect(checkConfig(naflexConfig)).toBe(naflexConfig);
});

test('gridSide counts whole patches', () => {
  expect(gridSide(fixedConfig.vision)).toBe(3);
  expect(gridSide(naflexConfig.vision)).toBe(3);
});

test.each<[string, unknown, string]>([
  ['vision.width', 0, 'vision.width must be a positive integer, got 0'],
  ['vision.heads', 5, 'vision.heads must be a divisor of the width 24, got 5'],
  ['text.heads', 3, 'text.heads must be a divisor of the width 16, got 3'],
  ['text.depth', 1.5, 'text.depth must be a positive integer, got 1.5'],
  ['text.mlpWidth', NaN, 'text.mlpWidth must be a positive integer, got NaN'],
  ['vision.imageSize', 3, 'vision.imageSize must be at least the patch size 4, got 3'],
  ['vision.imageSize', undefined, 'vision.imageSize must be a positive integer, got undefined'],
  ['vision.positions', 8, 'vision.positions must be the number of patches, 3 × 3 = 9, got 8'],
  ['vision.layout', 'square', 'vision.layout must be one of fixed, naflex, got square'],
  ['vision.pool', 'gap', 'vision.pool must be one of map, none, got gap'],
  ['text.pool', 'max', 'text.pool must be one of last, map, first, mean, got max'],
  ['text.vocabulary', -1, 'text.vocabulary must be a positive integer, got -1'],
  ['text.length', 0, 'text.length must be a positive integer, got 0'],
  ['embedding', 16, 'embedding must be the vision width 24'],
  ['layerNormEps', 0, 'layerNormEps must be a number between 0 and 1, got 0'],
])('%s = %p is refused', (field, value, message) => {
  const attempt = (): unknown => checkConfig(change(fixedConfig, field, value));
  expect(attempt).toThrow(`model config: ${message}`);
  try {
    attempt();
  } catch (error) {
    expect(error).toBeInstanceOf(SiglipError);
    expect(error).toHaveProperty('code', 'ERR_CONFIG');
  }
});

test('a NaFlex grid must be square', () => {
  expect(() => checkConfig(change(naflexConfig, 'vision.positions', 12))).toThrow(
    'model config: vision.positions must be the square of a grid side, got 12',
  );
});
