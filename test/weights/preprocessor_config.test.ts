import { variant } from '../../lib/model';
import { defaultPreprocessor, formatPreprocessor, parsePreprocessor } from '../../lib/weights';

const PUBLISHED = {
  do_convert_rgb: null,
  do_normalize: true,
  do_rescale: true,
  do_resize: true,
  image_mean: [0.5, 0.5, 0.5],
  image_processor_type: 'SiglipImageProcessor',
  image_std: [0.5, 0.5, 0.5],
  processor_class: 'SiglipProcessor',
  resample: 2,
  rescale_factor: 0.00392156862745098,
  size: { height: 224, width: 224 },
};

describe('parsePreprocessor', () => {
  test('the file says which filter, not the family', () => {
    expect(parsePreprocessor(PUBLISHED, 'fixed')).toEqual(
      defaultPreprocessor(variant('B/16', { imageSize: 224 })),
    );
    expect(parsePreprocessor({ ...PUBLISHED, resample: 3 }, 'fixed')).toMatchObject({
      resample: 'bicubic',
    });
    expect(parsePreprocessor({}, 'fixed')).toMatchObject({ resample: 'bicubic', height: 224 });
    expect(parsePreprocessor({}, 'naflex')).toEqual(
      defaultPreprocessor(variant('B/16', { layout: 'naflex' })),
    );
  });

  test('steps can be turned off, sizes be one number', () => {
    const off = { do_resize: false, do_rescale: false, do_normalize: false, size: 96 };
    expect(parsePreprocessor({ ...PUBLISHED, ...off }, 'fixed')).toEqual({
      layout: 'fixed',
      height: 96,
      width: 96,
      resample: null,
      backend: 'pillow',
      rescaleFactor: 1,
      mean: [0, 0, 0],
      std: [1, 1, 1],
    });
  });

  test('the name of the processor says whose arithmetic', () => {
    const backendOf = (name?: string): string =>
      parsePreprocessor({ image_processor_type: name }, 'naflex').backend;
    expect(backendOf('Siglip2ImageProcessorFast')).toBe('torchvision');
    expect(backendOf('Siglip2ImageProcessor')).toBe('pillow');
    expect(backendOf()).toBe('pillow');
  });

  test('NaFlex keys', () => {
    const json = { patch_size: 14, max_num_patches: 1024 };
    expect(parsePreprocessor(json, 'naflex')).toMatchObject({ patch: 14, maxPatches: 1024 });
  });

  test.each<[string, 'fixed' | 'naflex', unknown]>([
    ['content must be an object, got null', 'fixed', null],
    ['resample must be a filter of Pillow, 0 to 5, got 6', 'fixed', { resample: 6 }],
    [
      'resample must be 2 (bilinear) or 3 (bicubic) for a processor named Fast, got 1',
      'naflex',
      { resample: 1, image_processor_type: 'Siglip2ImageProcessorFast' },
    ],
    [
      'size must be { height, width } or one number, got {"shortest_edge":224}',
      'fixed',
      { size: { shortest_edge: 224 } },
    ],
    ['image_mean must be three numbers, got [0.5]', 'fixed', { image_mean: [0.5] }],
    ['image_std must be three positive numbers, got [1,0,1]', 'naflex', { image_std: [1, 0, 1] }],
    ['max_num_patches must be a positive integer, got -1', 'naflex', { max_num_patches: -1 }],
    ['do_resize must be true for a NaFlex model, got false', 'naflex', { do_resize: false }],
  ])('refuses: %s', (message, layout, content) => {
    expect(() => parsePreprocessor(content, layout)).toThrow(
      `preprocessor_config.json: ${message}`,
    );
  });
});

describe('formatPreprocessor', () => {
  test('published keys', () => {
    expect(formatPreprocessor(parsePreprocessor(PUBLISHED, 'fixed'))).toEqual(PUBLISHED);
  });

  test.each(['fixed', 'naflex'] as const)('%s comes back', (layout) => {
    const given = parsePreprocessor(
      {
        resample: 3,
        image_mean: [0.1, 0.2, 0.3],
        rescale_factor: 0.5,
        image_processor_type: 'AnyFast',
      },
      layout,
    );
    expect(parsePreprocessor(formatPreprocessor(given), layout)).toEqual(given);
  });

  test('steps that are turned off come back', () => {
    const off = { do_resize: false, do_rescale: false, do_normalize: false, size: 96 };
    const given = parsePreprocessor(off, 'fixed');
    expect(parsePreprocessor(formatPreprocessor(given), 'fixed')).toEqual(given);
  });
});
