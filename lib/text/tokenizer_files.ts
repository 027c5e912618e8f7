// The tokenizer of a model folder. Which one it is say the files, not the class that a config names:
// published configs of SigLIP 2 name three different ones.
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { SiglipError } from '../errors';
import { checked, isMissing, readJsonFile } from '../weights/json_file';
import { publishTogether } from '../weights/staged_files';
import type { AddedToken } from './added_tokens';
import { BytePairTokenizer } from './byte_pair_tokenizer';
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
  const unigramPath = join(folder, UNIGRAM_FILE);
  const unigram = await read(unigramPath);
  if (unigram !== undefined) {
    return new UnigramTokenizer(readSentencePiece(unigram, unigramPath), options);
  }
  const path = join(folder, JSON_FILE);
  const json = await read(path);
  if (json !== undefined) return new BytePairTokenizer(parseTokenizer(json, path), options);
  const modelPath = join(folder, MODEL_FILE);
  const model = await read(modelPath);
  if (model === undefined) return undefined;
  const added = await addedTokens(folder);
  return new BytePairTokenizer(parseSentencePiece(model, modelPath, added), options);
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

async function read(path: string): Promise<Buffer | undefined> {
  try {
    const { size } = await stat(path);
    if (size <= MAX_BYTES) return await readFile(path);
    throw new SiglipError(
      'ERR_TOKENIZER',
      `${path}: size must be at most ${String(MAX_BYTES)} bytes, got ${String(size)}`,
    );
  } catch (error) {
    if (error instanceof SiglipError) throw error;
    if (isMissing(error)) return undefined;
    const reason = error instanceof Error ? error.message : String(error);
    throw new SiglipError('ERR_FILE', `${path}: file must be readable, got ${reason}`, {
      cause: error,
    });
  }
}

/**
 * Saves a tokenizer into a model folder as `tokenizer.json` and `tokenizer_config.json`. The files
 * give the same ids, lower-casing and `<eos>` included, in {@link loadTokenizer} and in
 * `AutoTokenizer` of the reference.
 *
 * @throws SiglipError ERR_FILE
 */
export async function saveTokenizer(
  folder: string,
  tokenizer: BytePairTokenizer,
): Promise<void> {
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
