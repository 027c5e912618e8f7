// The tokenizer of a model folder. Which one it is say the files, not the class that a config names:
// published configs of SigLIP 2 name three different ones.
import { readFileSync } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { z } from 'zod';
import { SiglipError } from '../errors';
import { isMissing, unreadable } from '../weights/file_errors';
import { checked, readJsonFile } from '../weights/json_file';
import { publishTogether } from '../weights/staged_files';
import type { AddedToken } from './added_tokens';
import { BytePairTokenizer } from './byte_pair_tokenizer';
import { DeferredTokenizer } from './deferred_tokenizer';
import { parseSentencePiece, readSentencePiece } from './sentencepiece';
import type { Tokenizer, TokenizerOptions } from './tokenizer';
import { formatTokenizer, parseTokenizer } from './tokenizer_json';
import { UnigramTokenizer } from './unigram_tokenizer';

const UNIGRAM_FILE = 'spiece.model';
const JSON_FILE = 'tokenizer.json';
const MODEL_FILE = 'tokenizer.model';
const CONFIG_FILE = 'tokenizer_config.json';

// The largest published file has 34 MB.
const MAX_BYTES = 256 * 1024 * 1024;

const config = z.looseObject(
  {
    added_tokens_decoder: z
      .record(
        z.string().regex(/^\d+$/u),
        z.looseObject({ content: z.string(), special: z.boolean().nullish() }),
        'an object of tokens by id',
      )
      .nullish(),
  },
  'an object',
);

/**
 * Loads the tokenizer of a model folder: `spiece.model` (SigLIP 1; the `tokenizer.json` beside it
 * leaves punctuation in), else `tokenizer.json`, else `tokenizer.model`.
 *
 * @returns undefined when the folder holds none of them
 * @throws SiglipError ERR_TOKENIZER when a file cannot be used, ERR_FILE when it cannot be read
 * @example
 * const tokenizer = await loadTokenizer('./siglip2-base-patch16-224');
 * const ids = tokenizer?.encode(['a photo of a cat', 'een foto van een kat']);   // (2, 64)
 */
export async function loadTokenizer(
  folder: string,
  options: TokenizerOptions = {},
): Promise<Tokenizer | undefined> {
  const path = await tokenizerFile(folder);
  if (path === undefined) return undefined;
  const bytes = await reading(path, () => readFile(path));
  const added = basename(path) === MODEL_FILE ? await addedTokens(folder) : undefined;
  return tokenizerOf(path, bytes, added, options);
}

/**
 * As {@link loadTokenizer}, but a `tokenizer.json` or `spiece.model` is read when the tokenizer is
 * first asked for something, which then throws what loading would have thrown. Opening Gemma's 34 MB
 * takes about half a second; this takes none.
 */
export async function deferTokenizer(
  folder: string,
  options: TokenizerOptions = {},
): Promise<Tokenizer | undefined> {
  const path = await tokenizerFile(folder);
  if (path === undefined) return undefined;
  const added = basename(path) === MODEL_FILE ? await addedTokens(folder) : undefined;
  return new DeferredTokenizer(() => {
    try {
      return tokenizerOf(path, readFileSync(path), added, options);
    } catch (error) {
      throw unreadable(path, error);
    }
  });
}

// The file that says what the tokenizer of a folder is.
async function tokenizerFile(folder: string): Promise<string | undefined> {
  for (const name of [UNIGRAM_FILE, JSON_FILE, MODEL_FILE]) {
    const path = join(folder, name);
    if (await isThere(path)) return path;
  }
  return undefined;
}

async function isThere(path: string): Promise<boolean> {
  try {
    const { size } = await stat(path);
    if (size <= MAX_BYTES) return true;
    throw new SiglipError(
      'ERR_TOKENIZER',
      `${path}: size must be at most ${String(MAX_BYTES)} bytes, got ${String(size)}`,
    );
  } catch (error) {
    if (isMissing(error)) return false;
    throw unreadable(path, error);
  }
}

async function reading<T>(path: string, read: () => Promise<T>): Promise<T> {
  try {
    return await read();
  } catch (error) {
    throw unreadable(path, error);
  }
}

function tokenizerOf(
  path: string,
  bytes: Uint8Array,
  added: readonly AddedToken[] | undefined,
  options: TokenizerOptions,
): Tokenizer {
  switch (basename(path)) {
    case UNIGRAM_FILE:
      return new UnigramTokenizer(readSentencePiece(bytes, path), options);
    case MODEL_FILE:
      return new BytePairTokenizer(parseSentencePiece(bytes, path, added), options);
    default:
      return new BytePairTokenizer(parseTokenizer(bytes, path), options);
  }
}

async function addedTokens(folder: string): Promise<AddedToken[] | undefined> {
  const content = await readJsonFile(folder, CONFIG_FILE, 'ERR_TOKENIZER');
  if (content === undefined) return undefined;
  const file = join(folder, CONFIG_FILE);
  const tokens = checked(config, content, file, 'ERR_TOKENIZER').added_tokens_decoder;
  if (tokens === null || tokens === undefined) return undefined;
  return Object.entries(tokens).map(([id, token]) => ({
    id: Number(id),
    content: token.content,
    special: token.special === true,
  }));
}

/**
 * Saves a tokenizer into a model folder as `tokenizer.json` and `tokenizer_config.json`. The files
 * give the same ids, lower-casing and `<eos>` included, in {@link loadTokenizer} and in
 * `AutoTokenizer` of the reference.
 *
 * @throws SiglipError ERR_FILE
 */
export async function saveTokenizer(folder: string, tokenizer: BytePairTokenizer): Promise<void> {
  const special = (id: number): string => tokenizer.definition.pieces.text(id);
  await publishTogether(folder, async (files) => {
    await files.writeJson(CONFIG_FILE, {
      clean_up_tokenization_spaces: false,
      do_lower_case: tokenizer.lowercase,
      eos_token: special(tokenizer.eosId),
      model_input_names: ['input_ids'],
      pad_token: special(tokenizer.padId),
      padding_side: 'right',
      tokenizer_class: 'PreTrainedTokenizerFast',
      unk_token: special(tokenizer.definition.unknown),
    });
    await files.write(JSON_FILE, (file) =>
      file.writeFile(JSON.stringify(formatTokenizer(tokenizer))),
    );
    return [];
  });
}
