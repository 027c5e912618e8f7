import {
  canonicalClassName,
  canonicalizeText,
  clipBestTemplates,
  clipPaperTemplates,
  promptOf,
} from '../../lib/eval';
import { describeGolden } from '../golden_cases/golden';

describeGolden('bv_evaluators', (golden) => {
  test('texts in canonical form', () => {
    const texts = golden.json.canonicalization as Record<
      'text' | 'plain' | 'keep_braces' | 'keep_comma',
      string
    >[];
    expect(texts.length).toBeGreaterThan(10);
    for (const { text, ...expected } of texts) {
      expect({
        plain: canonicalizeText(text),
        keep_braces: canonicalizeText(text, '{}'),
        keep_comma: canonicalizeText(text, ','),
      }).toEqual(expected);
    }
  });
});

test('81 templates, all different and in canonical form; the best are among them', () => {
  expect(new Set(clipPaperTemplates).size).toBe(81);
  expect(clipPaperTemplates).toHaveLength(81);
  for (const template of clipPaperTemplates) {
    expect(canonicalizeText(template, '{}')).toBe(template);
    expect(template.split('{}')).toHaveLength(2);
  }
  expect(clipBestTemplates).toHaveLength(8);
  expect(clipPaperTemplates).toEqual(expect.arrayContaining([...clipBestTemplates]));
  // Some of CLIP's, as they were written.
  for (const template of [
    'a bad photo of a {}.',
    'a photo of many {}.',
    'a sculpture of the {}.',
    'a photo of the hard to see {}.',
    'a close-up photo of the {}.',
    'graffiti of the {}.',
    'itap of my {}.',
    'the {} in a video game.',
    'the plushie {}.',
    'a sketch of a {}.',
  ]) {
    expect(clipPaperTemplates).toContain(canonicalizeText(template, '{}'));
  }
});

test('class names end at their first comma', () => {
  expect(canonicalClassName('Great White Shark, white_shark')).toBe('great white shark');
  expect(promptOf('a photo of the {}', canonicalClassName('Jack-o’-lantern'))).toBe(
    'a photo of the jacko’lantern',
  );
});
