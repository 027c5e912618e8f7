// The prompts of zero-shot classification (big_vision evaluators/proj/image_text/prompt_engineering.py):
// texts in canonical form, the templates of CLIP, and class names cut at their first comma.

const PUNCTUATION = /[!-/:-@[-`{-~]/gu;

/**
 * A text in canonical form: underscores become spaces, ASCII punctuation goes, lower case, single
 * spaces, none at the ends. "A close-up photo of a {}." is "a closeup photo of a {}" keeping "{}".
 *
 * @param keep - a string whose punctuation stays
 */
export function canonicalizeText(text: string, keep?: string): string {
  const bare = (part: string): string => part.replaceAll('_', ' ').replace(PUNCTUATION, '');
  const parts = keep === undefined ? [text] : text.split(keep);
  return parts.map(bare).join(keep).toLowerCase().replace(/\s+/gu, ' ').trim();
}

/** A class name as it is put into templates: in canonical form, up to its first comma. */
export function canonicalClassName(name: string): string {
  return canonicalizeText(name, ',').split(',')[0];
}

/** The text of a class in a template. */
export function promptOf(template: string, className: string): string {
  return template.replaceAll('{}', className);
}

const articles = ['a', 'the'];
const of = (words: string, form: (word: string) => string | readonly string[]): string[] =>
  words.split(', ').flatMap(form);

/** CLIP's 80 templates and the bare name, in canonical form: big_vision's `clip_paper`. */
export const clipPaperTemplates: readonly string[] = [
  ...of(
    'bad, cropped, bright, dark, closeup, black and white, pixelated, jpeg corrupted, blurry, good, low resolution',
    (word) => articles.map((article) => `a ${word} photo of ${article} {}`),
  ),
  ...of('hard to see, clean, dirty, cool, large, nice, weird, small', (word) =>
    articles.map((article) => `a photo of ${article} ${word} {}`),
  ),
  ...of('many, my, one, the, a', (word) => `a photo of ${word} {}`),
  ...of('sculpture, rendering, tattoo, drawing, painting, doodle, sketch, rendition', (word) =>
    articles.map((article) => `a ${word} of ${article} {}`),
  ),
  ...of('graffiti, art', (word) => articles.map((article) => `${word} of ${article} {}`)),
  ...of('the, a, my', (word) => `itap of ${word} {}`),
  ...of('embroidered, plastic, origami, toy, cartoon, plushie', (word) =>
    articles.map((article) => `${article} ${word} {}`),
  ),
  ...articles.map((article) => `${article} {} in a video game`),
  '{}',
];

/** Those that CLIP found best together, in canonical form: big_vision's `clip_best`. */
export const clipBestTemplates: readonly string[] = [
  'itap of a {}',
  'a bad photo of the {}',
  'a origami {}',
  'a photo of the large {}',
  'a {} in a video game',
  'art of the {}',
  'a photo of the small {}',
  '{}',
];
