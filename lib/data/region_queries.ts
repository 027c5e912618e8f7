// What a detector is asked to find in an image, by the recipe of OWLv2 (arXiv 2306.09683, appendix):
// n-grams of the image's alt-text, and a fixed space of labels.
import { SiglipError } from '../errors';

/** Words of web pages that name no thing. */
const GENERIC_WORDS = new Set(
  (
    'alibaba aliexpress amazon available background blog buy co com description diy download facebook ' +
    'free gif hd ideas illustration illustrations image images img instagram jpg online org original ' +
    'page pdf photo photos photography picclick picture pictures png porn premium resolution royalty ' +
    'sale sex shutterstock stock svg thumbnail tumblr tumgir twitter uk uploaded vector vectors video ' +
    'videos wallpaper wallpapers wholesale www xxx youtube'
  ).split(' '),
);

/** English stop-words, the list of NLTK. */
const STOP_WORDS = new Set(
  (
    "i me my myself we our ours ourselves you you're you've you'll you'd your yours yourself yourselves " +
    "he him his himself she she's her hers herself it it's its itself they them their theirs themselves " +
    "what which who whom this that that'll these those am is are was were be been being have has had " +
    'having do does did doing a an the and but if or because as until while of at by for with about ' +
    'against between into through during before after above below to from up down in out on off over ' +
    'under again further then once here there when where why how all any both each few more most other ' +
    "some such no nor not only own same so than too very s t can will just don don't should should've " +
    "now d ll m o re ve y ain aren aren't couldn couldn't didn didn't doesn doesn't hadn hadn't hasn " +
    "hasn't haven haven't isn isn't ma mightn mightn't mustn mustn't needn needn't shan shan't shouldn " +
    "shouldn't wasn wasn't weren weren't won won't wouldn wouldn't"
  ).split(' '),
);

/** How queries are made. */
export interface RegionQueryOptions {
  /** Words of the longest n-gram. Default 10. */
  readonly longest?: number | undefined;
  /** Most queries of an image. Default 300. */
  readonly most?: number | undefined;
  /**
   * Whether punctuation around words goes. The paper does not say; default `'keep'`, as its words are
   * divided by white space alone.
   */
  readonly punctuation?: 'keep' | 'strip' | undefined;
}

/**
 * The n-grams of an alt-text that may name something: lower-cased, without generic words of the web,
 * none of stop-words alone, each once. In the order of NLTK's everygrams: by first word, the shorter
 * before the longer.
 *
 * Texts in other languages are to be translated first, as OWLv2 does.
 *
 * @throws ERR_ARGUMENT
 * @example
 * regionQueries('Stock photo of a red car'); // ['of a red', 'of a red car', 'a red', … 'car']
 */
export function regionQueries(text: string, options: RegionQueryOptions = {}): string[] {
  const { longest = 10, most = 300, punctuation = 'keep' } = options;
  for (const [what, value] of Object.entries({ longest, most })) {
    if (Number.isSafeInteger(value) && value >= 1) continue;
    throw new SiglipError(
      'ERR_ARGUMENT',
      `regionQueries: ${what} must be a positive integer, got ${String(value)}`,
    );
  }
  const words = text
    .toLowerCase()
    .split(/\s+/u)
    .map((word) => (punctuation === 'keep' ? word : stripped(word)))
    .filter((word) => word !== '' && !GENERIC_WORDS.has(word));
  const queries = new Set<string>();
  for (let first = 0; first < words.length; first++) {
    for (let end = first + 1; end <= Math.min(words.length, first + longest); end++) {
      const gram = words.slice(first, end);
      if (gram.every((word) => STOP_WORDS.has(word))) continue;
      queries.add(gram.join(' '));
      if (queries.size === most) return [...queries];
    }
  }
  return [...queries];
}

function stripped(word: string): string {
  return word.replace(/^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$/gu, '');
}

/**
 * A fixed space of labels from several lists of names: lower-cased, each once, and no plural (name + s
 * or es) of another one. OWLv2 made one of 2520 names from LVIS, Objects365, OpenImagesV4 and Visual
 * Genome in this way.
 */
export function labelSpace(names: Iterable<string>): string[] {
  const labels = new Set<string>();
  for (const name of names) {
    const label = name
      .trim()
      .toLowerCase()
      .replace(/[\s_]+/gu, ' ');
    if (label !== '') labels.add(label);
  }
  const isPlural = (label: string): boolean =>
    (label.endsWith('s') && labels.has(label.slice(0, -1))) ||
    (label.endsWith('es') && labels.has(label.slice(0, -2)));
  return [...labels].filter((label) => !isPlural(label));
}
